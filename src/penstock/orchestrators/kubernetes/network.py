"""Who may speak to whom: nobody, but for what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.orchestrators.kubernetes.observers import MEASURED, METRICS_PORT, observers
from penstock.orchestrators.kubernetes.project import (
    COLLECTOR_PORT,
    MLFLOW_PORT,
    VLLM_PORT,
    Manifest,
    Project,
)
from penstock.orchestrators.unexpanded import ports_named

# Of the hosts' own network: a cloud's credentials are there for who can ask.
_METADATA = "169.254.0.0/16"
_DATABASE_PORTS = (443, 5432)


def network_policies(project: Project) -> list[Manifest]:
    """All policies, most general first."""
    serve, recipe = project.recipe.serve, project.recipe
    everyone: Manifest = {"app.kubernetes.io/instance": project.name}
    found = [
        _policy(project, "deny", everyone, {"policyTypes": ["Ingress", "Egress"]}),
        _policy(project, "inside", everyone, _egress([_dns(), {"to": [_pods(everyone)]}])),
        _policy(
            project,
            "outside",
            everyone,
            _egress([_outside(_ports(project))]),
        ),
        # Sources may be anywhere.
        *(
            _policy(project, f"sources-{one}", project.labels(one), _egress([_outside([])]))
            for one in ("run", "watch")
        ),
        _from(project, "gateway", _clients(project), [serve.port]),
    ]
    if serve.metrics_port is not None:
        monitoring = [_namespace(project.options.monitoring_namespace)]
        found.append(_from(project, "gateway", monitoring, [serve.metrics_port], "metrics"))
        made = observers(project)
        found += [
            _from(project, one, monitoring, [METRICS_PORT], "metrics")
            for one in MEASURED
            if one in made
        ]
    if recipe.serve.traces is not None:
        found.append(
            _from(project, "collector", [_pods(project.labels("gateway"))], [COLLECTOR_PORT])
        )
    if project.makes_mlflow:
        found.append(_from(project, "mlflow", [_pods(everyone)], [MLFLOW_PORT]))
    for name in project.vllm_servers:
        askers = [_pods(project.labels(one)) for one in ("gateway", "run", "watch")]
        found.append(_from(project, f"vllm-{project.slug(name)}", askers, [VLLM_PORT]))
    return found + _ray(project)


def _ray(project: Project) -> list[Manifest]:
    """Ray's processes use any ports of each other; the operator asks the head's dashboard."""
    if not project.ray_models and project.recipe.train.launcher.type != "ray":
        return []
    members = ["gateway", "ray", "run"]
    peers = [_pods(project.labels(one)) for one in members]
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    found = [_from(project, one, peers, [], "ray") for one in members]
    return [
        *found,
        *(_from(project, one, [operator], [8265, 8000], "operator") for one in ("ray", "run")),
    ]


def _ports(project: Project) -> list[int]:
    """Those of databases and HTTPS, of the recipe's addresses but for sources, and the user's."""
    recipe = project.recipe
    named = ports_named((recipe.serve, recipe.observe, recipe.tracking, recipe.ledger))
    return [*_DATABASE_PORTS, *named, *project.options.egress_ports]


def _clients(project: Project) -> list[Manifest]:
    named = [_namespace(one) for one in project.options.client_namespaces]
    return named or [{"namespaceSelector": {}}]


def _namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _pods(labels: Manifest) -> Manifest:
    return {"podSelector": {"matchLabels": labels}}


def _dns() -> Manifest:
    """The cluster's DNS, and NodeLocal DNSCache where there is one."""
    ports = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    cache = {"ipBlock": {"cidr": "169.254.20.10/32"}}
    return {"to": [_namespace("kube-system"), cache], "ports": ports}


def _outside(ports: Sequence[int]) -> Manifest:
    rule: Manifest = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": [_METADATA]}}]}
    if ports:
        rule["ports"] = [{"protocol": "TCP", "port": one} for one in sorted(set(ports))]
    return rule


def _egress(rules: Sequence[Manifest]) -> Manifest:
    return {"policyTypes": ["Egress"], "egress": list(rules)}


def _from(
    project: Project,
    component: str,
    peers: Sequence[Manifest],
    ports: Sequence[int],
    why: str = "",
) -> Manifest:
    rule: Manifest = {"from": list(peers)}
    if ports:
        rule["ports"] = [{"protocol": "TCP", "port": one} for one in ports]
    name = "-".join(filter(None, ("to", component, why)))
    spec: dict[str, Any] = {"policyTypes": ["Ingress"], "ingress": [rule]}
    return _policy(project, name, project.labels(component), spec)


def _policy(project: Project, name: str, labels: Manifest, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": project.metadata(project.part(name), "network"),
        "spec": {"podSelector": {"matchLabels": labels}, **spec},
    }
