"""The manifests: valid by strict schemas, without rights and secrets, and what a recipe says."""

import copy
import functools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import typer.main
import yaml

from cluster_recipes import ALL, EVERYTHING, IMAGE, LEAST, exported, loaded
from manifest_schemas import ValidationError, check
from penstock.cli import app
from penstock.cli.options import overrides_of
from penstock.errors import RecipeError
from penstock.monitoring.trace_targets import target
from penstock.orchestrators.kubernetes import KubernetesOptions
from penstock.orchestrators.kubernetes.observing import collector_config
from penstock.recipe_file import load_recipe
from penstock.traces_section import TracesConfig

SECRETS = {
    "PENSTOCK_LEDGER": "postgresql://penstock:hunter2@db/penstock",
    "REPLIES_PASSWORD": "hunter2",
    "KAFKA_PASSWORD": "hunter2",
    "OUTSIDE_KEY": "hunter2",
    "JUDGE_KEY": "hunter2",
}
# RFC 1123's label.
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Every recipe's files, with all that is made only when it is asked for."""
    return {
        name: exported(
            tmp_path_factory.mktemp(name), text, schedule="@weekly", queued=5, max_replicas=9
        )
        for name, text in ALL.items()
    }


@functools.cache
def parsed(text):
    return tuple(yaml.safe_load_all(text))


def manifests(files):
    for name, text in files.items():
        if name.endswith(".yaml") and not name.endswith("kustomization.yaml"):
            yield from parsed(text)


def one(files, kind, name=None):
    found = [m for m in manifests(files) if m["kind"] == kind]
    if name is not None:
        found = [m for m in found if m["metadata"]["name"] == name]
    (only,) = found
    return only


def pods(manifest):
    """Every pod's spec in a manifest, however deep."""
    if isinstance(manifest, dict):
        if "containers" in manifest:
            yield manifest
        for value in manifest.values():
            yield from pods(value)
    elif isinstance(manifest, list):
        for value in manifest:
            yield from pods(value)


def containers(manifest):
    for pod in pods(manifest):
        yield from [*pod["containers"], *pod.get("initContainers", [])]


def environment(container):
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}


def words(container):
    """The command line as penstock gets it: $$ is a dollar, and sh -c runs its arguments."""
    line = [*container.get("command", []), *container.get("args", [])]
    line = line[line.index("penstock") :]
    return [word.replace("$$(", "$(") for word in line]


def told(files, container, tmp_path, monkeypatch):
    """The recipe as that container loads it: the ConfigMap's text and its own words."""
    configs = [m for m in manifests(files) if m["kind"] == "ConfigMap"]
    (text,) = [m["data"]["recipe.yaml"] for m in configs if "recipe.yaml" in m["data"]]
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    line = words(container)
    sets = [line[i + 1] for i, word in enumerate(line) if word == "--set"]
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return load_recipe(path, overrides_of(sets))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_manifest_is_valid_by_strict_schemas(exports, name):
    for manifest in manifests(exports[name]):
        check(manifest)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "livenessProbe")),
        ("NetworkPolicy", ("spec",)),
        ("RayService", ("spec", "rayClusterConfig")),
        ("RayService", ("spec", "rayClusterConfig", "workerGroupSpecs", 0, "template", "spec")),
        ("RayJob", ("spec",)),
        ("RayJob", ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec")),
        ("ServiceMonitor", ("spec", "endpoints", 0)),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0)),
    ],
)
def test_a_field_that_does_not_exist_is_refused_by_the_same_check(exports, kind, path):
    found = next(m for m in manifests(exports["everything"]) if m["kind"] == kind)
    wrong = copy.deepcopy(found)
    here = wrong
    for key in path:
        here = here[key]
    here["misspelt"] = 1
    check(found)
    with pytest.raises(ValidationError, match="misspelt"):
        check(wrong)


@pytest.mark.slow
def test_kustomize_builds_both_overlays_and_development_has_one_gateway(exports, tmp_path):
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl")
    for name, text in exports["everything"].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    built = {}
    for overlay in ("development", "production"):
        done = subprocess.run(
            ["kubectl", "kustomize", tmp_path / "overlays" / overlay],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        built[overlay] = list(yaml.safe_load_all(done.stdout))
        for manifest in built[overlay]:
            check(manifest)
    sizes = {
        overlay: (m["spec"]["minReplicas"], m["spec"]["maxReplicas"])
        for overlay, found in built.items()
        for m in found
        if m["kind"] == "HorizontalPodAutoscaler"
    }
    assert sizes == {"development": (1, 1), "production": (2, 9)}
    kinds = {overlay: {m["kind"] for m in found} for overlay, found in built.items()}
    assert kinds["production"] - kinds["development"] == {"ServiceMonitor", "PrometheusRule"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_no_secret_of_the_environment_is_in_any_file(tmp_path, monkeypatch, name):
    before = exported(tmp_path, ALL[name])
    for variable, value in SECRETS.items():
        monkeypatch.setenv(variable, value)
    after = exported(tmp_path, ALL[name])
    assert after == before, "the files depend on the environment they were written in"
    assert "hunter2" not in "".join(after.values())


def test_every_secret_is_a_reference_and_the_page_names_its_key(exports):
    files = exports["everything"]
    page = files["README.md"]
    for manifest in manifests(files):
        for container in containers(manifest):
            for name, value in environment(container).items():
                if isinstance(value, dict):
                    assert value["secretKeyRef"]["name"] == "support-secrets"
                    assert f"| `{value['secretKeyRef']['key']}` |" in page
                else:
                    assert name not in SECRETS


def test_each_pod_gets_the_secrets_it_needs_and_no_others(exports):
    files = exports["everything"]
    gateway = environment(
        one(files, "Deployment", "support-gateway")["spec"]["template"]["spec"]["containers"][0]
    )
    run = environment(next(containers(one(files, "CronJob"))))
    mlflow = environment(next(containers(one(files, "Deployment", "support-mlflow"))))
    collector = environment(next(containers(one(files, "Deployment", "support-collector"))))
    assert "KAFKA_PASSWORD" in run
    assert "KAFKA_PASSWORD" not in gateway
    assert gateway["PENSTOCK_ALERTS_SECRET"]["secretKeyRef"]["optional"] is True
    assert "PENSTOCK_ALERTS_SECRET" not in run
    assert isinstance(gateway["OUTSIDE_KEY"], dict)
    assert gateway["LANGFUSE_SECRET_KEY"] == "held-by-the-collector"
    assert isinstance(collector["LANGFUSE_SECRET_KEY"], dict)
    assert "PENSTOCK_LEDGER" not in collector
    assert "PENSTOCK_LEDGER" not in mlflow
    assert isinstance(mlflow["MLFLOW_BACKEND_STORE_URI"], dict)


@pytest.mark.parametrize("name", ALL)
def test_pods_meet_the_restricted_standard_on_a_root_they_cannot_write(exports, name):
    seen = 0
    for manifest in manifests(exports[name]):
        for pod in pods(manifest):
            seen += 1
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not any("hostPath" in volume for volume in pod["volumes"])
            for container in [*pod["containers"], *pod.get("initContainers", [])]:
                context = container["securityContext"]
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert context["allowPrivilegeEscalation"] is False
                assert context["readOnlyRootFilesystem"] is True
                assert {"cpu", "memory"} <= set(container["resources"]["requests"])
                assert container["resources"]["limits"]["memory"]
                mounted = {mount["name"] for mount in container["volumeMounts"]}
                assert mounted <= {volume["name"] for volume in pod["volumes"]}
    assert seen >= 3


def test_only_the_autoscalers_head_has_an_account_with_a_token(exports):
    without = []
    for manifest in manifests(exports["everything"]):
        for pod in pods(manifest):
            if pod.get("automountServiceAccountToken") is not False:
                without.append((manifest["kind"], pod["containers"][0]["name"]))
    assert without == [("RayService", "ray-head")]


@pytest.mark.parametrize("name", ALL)
def test_names_are_labels_and_everything_is_in_the_namespace(exports, name):
    for manifest in manifests(exports[name]):
        metadata = manifest["metadata"]
        assert LABEL.fullmatch(metadata.get("name") or metadata["generateName"].strip("-"))
        if manifest["kind"] != "Namespace":
            assert metadata["namespace"] == "support"


def test_the_gateway_ends_no_earlier_than_its_drain(exports):
    pod = one(exports["everything"], "Deployment", "support-gateway")["spec"]["template"]["spec"]
    leaves_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    # The recipe says 41.5, and workers' processes get five seconds more.
    assert pod["terminationGracePeriodSeconds"] >= leaves_s + 41.5 + 5


def test_probes_ask_what_the_gateway_answers(exports):
    from penstock.serving.exchange import _PROBES

    (container,) = one(exports["least"], "Deployment")["spec"]["template"]["spec"]["containers"]
    asked = {kind: container[kind]["httpGet"] for kind in container if kind.endswith("Probe")}
    assert {probe["path"] for probe in asked.values()} <= _PROBES
    assert asked["livenessProbe"]["path"] == asked["startupProbe"]["path"] == "/healthz"
    assert asked["readinessProbe"]["path"] == "/readyz"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "metrics": 9090}
    assert {probe["port"] for probe in asked.values()} == {"http"}


def test_the_autoscaler_and_nobody_else_says_how_many_gateways_there_are(exports):
    files = exports["least"]
    deployment, scaler = one(files, "Deployment"), one(files, "HorizontalPodAutoscaler")
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    cpu, queued = scaler["spec"]["metrics"]
    assert cpu["resource"]["name"] == "cpu"
    assert queued["pods"]["metric"]["name"] == "llm_queued_requests"
    assert queued["pods"]["target"] == {"type": "AverageValue", "averageValue": "5"}


def test_selectors_find_their_pods(exports):
    for files in exports.values():
        labels = [
            m["spec"]["template"]["metadata"]["labels"]
            for m in manifests(files)
            if m["kind"] == "Deployment"
        ]
        for kind in ("Service", "PodDisruptionBudget"):
            for manifest in manifests(files):
                if manifest["kind"] == kind:
                    wanted = manifest["spec"]["selector"]
                    wanted = wanted.get("matchLabels", wanted)
                    assert sum(wanted.items() <= found.items() for found in labels) == 1


def test_pods_serve_what_the_recipe_says_but_for_where_vllm_and_traces_are(
    exports, tmp_path, monkeypatch
):
    files = exports["everything"]
    (container,) = one(files, "Deployment", "support-gateway")["spec"]["template"]["spec"][
        "containers"
    ]
    recipe = told(files, container, tmp_path, monkeypatch)
    models = recipe.served.models
    assert recipe.ledger == SECRETS["PENSTOCK_LEDGER"]
    assert recipe.tracking == "http://support-mlflow:5000"
    assert recipe.serve.traces.endpoint == "http://support-collector:4318"
    assert recipe.serve.traces.to == "langfuse"
    assert models["support"].backend_name == "ray_serve"
    assert models["support"].replicas.max == 10
    assert models["big.one"].options == {
        "url": "http://support-vllm-big-one:8000/v1",
        "served_name": "big-one",
        "api_key_env": "VLLM_API_KEY",
    }
    assert models["pinned"].version == 3
    assert models["outside"].options["api_key_env"] == "OUTSIDE_KEY"
    services = {m["metadata"]["name"] for m in manifests(files) if m["kind"] == "Service"}
    assert {"support-vllm-big-one", "support-vllm-pinned", "support-mlflow"} <= services


def test_overrides_go_to_every_command_as_they_were_typed(tmp_path, monkeypatch):
    typed = ("serve.max_queue=7", "register.model=a$(HOME)")
    text = LEAST.replace("serve:", "register: {model: x}\nserve:")
    files = exported(tmp_path, text, typed[0], schedule="@daily")
    for container in (next(containers(one(files, kind))) for kind in ("Deployment", "CronJob")):
        assert told(files, container, tmp_path, monkeypatch).serve.max_queue == 7
    with pytest.raises(RecipeError):
        exported(tmp_path, text, typed[1])
    odd = exported(tmp_path, text, "sources.rows.paths=['$(HOME)/*']")
    (container,) = containers(one(odd, "Deployment"))
    # Kubernetes makes $(HOME) of it again, and not the home folder.
    assert "sources.rows.paths=['$$(HOME)/*']" in container["command"]


def test_vllm_gets_the_recipes_words_its_gpus_and_shared_memory(exports):
    pod = one(exports["everything"], "Deployment", "support-vllm-big-one")["spec"]["template"][
        "spec"
    ]
    (container,) = pod["containers"]
    line = container["command"]
    assert line[:5] == ["vllm", "serve", "org/model", "--revision", "0123abc"]
    assert line[-4:] == ["--tensor-parallel-size", "2", "--dtype", "bfloat16"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1200
    assert any(v.get("emptyDir", {}).get("medium") == "Memory" for v in pod["volumes"])


def test_a_pinned_version_is_downloaded_before_vllm_starts(exports):
    pod = one(exports["everything"], "Deployment", "support-vllm-pinned")["spec"]["template"][
        "spec"
    ]
    (first,) = pod["initContainers"]
    assert first["image"] == IMAGE
    line = words(first)
    assert line[:3] == ["penstock", "model", "download"]
    assert line[line.index("--version") + 1] == "3"
    folder = line[line.index("--output-dir") + 1]
    assert pod["containers"][0]["command"][2] == folder


def test_a_model_that_follows_an_alias_has_its_vllm_in_the_gateway(exports):
    files = exports["follows"]
    pod = one(files, "Deployment", "support-gateway")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert not any("vllm" in name for name in files)


def test_workers_have_room_for_a_new_version_beside_the_old(exports):
    spec = one(exports["everything"], "RayService")["spec"]
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    # Two copies share a GPU: 2 to 10 of them are 1 to 5 pods, and one for the next version.
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 6)
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == "8"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["rayClusterConfig"]["enableInTreeAutoscaling"] is True
    # Gateways are part of the cluster: one that is replaced takes them all with it.
    assert spec["upgradeStrategy"] == {"type": "None"}


def test_the_gateway_joins_the_cluster_before_it_serves(exports):
    pod = one(exports["everything"], "Deployment", "support-gateway")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][:2] == ["sh", "-c"]
    assert "--address=support-ray-head-svc:6379 --num-cpus=0" in container["command"][2]
    assert environment(container)["RAY_ADDRESS"] == "auto"
    cluster = one(exports["everything"], "RayService")["spec"]["rayClusterConfig"]
    token = environment(container)["RAY_AUTH_TOKEN"]["secretKeyRef"]
    assert token == {"name": cluster["authOptions"]["secretName"], "key": "auth_token"}


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (2, 2), (3, 0), (4, 0)])
def test_a_verdict_ends_a_rayjob_well_and_a_failure_does_not(exports, tmp_path, code, ends):
    said = tmp_path / "said"
    fake = tmp_path / "penstock"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{said}\nexit {code}\n')
    fake.chmod(0o755)
    entrypoint = one(exports["everything"], "RayJob")["spec"]["entrypoint"]
    # Ray runs it by a shell, as it is.
    done = subprocess.run(entrypoint, shell=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == ends
    line = said.read_text().splitlines()
    launcher = line[-1].removeprefix("train.launcher=")
    assert line[0] == "run"
    assert yaml.safe_load(launcher) == {
        "type": "ray",
        "workers": 4,
        "address": "auto",
        "cpus_per_worker": 8,
        "gpus_per_worker": 1.0,
        "max_restarts": 3,
    }


def test_a_rayjob_has_a_worker_for_each_of_the_trainings(exports):
    spec = one(exports["everything"], "RayJob")["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 4
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == "8"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_a_run_that_cannot_get_better_is_not_tried_again(exports):
    spec = one(exports["least"], "CronJob")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    disrupted, final = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert disrupted["action"] == "Ignore"
    assert final["action"] == "FailJob"
    assert final["onExitCodes"]["values"] == [2, 3, 4, 5]
    assert not [m for m in manifests(exports["follows"]) if m["kind"] == "RayJob"]


def test_a_watcher_stands_where_the_recipe_has_one_and_has_what_it_runs_with(exports):
    here = one(exports["everything"], "Deployment", "support-watch")["spec"]
    (container,) = here["template"]["spec"]["containers"]
    assert here["replicas"] == 1
    assert here["strategy"] == {"type": "Recreate"}
    assert words(container)[:2] == ["penstock", "watch"]
    assert container["resources"]["requests"] == {"cpu": "4", "memory": "16Gi"}
    assert "KAFKA_PASSWORD" in environment(container)
    (asks,) = one(exports["follows"], "Deployment", "support-watch")["spec"]["template"]["spec"][
        "containers"
    ]
    assert environment(asks)["PENSTOCK_AIRFLOW_TOKEN"]["secretKeyRef"]["optional"] is True
    assert asks["resources"]["requests"]["cpu"] == "500m"
    assert not any(name.endswith("watch.yaml") for name in exports["least"])


def test_what_looks_at_traffic_stands_where_the_recipe_has_it_and_has_its_keys(exports):
    files = exports["everything"]
    (drift,), (judge,), (scores,) = (
        list(containers(one(files, "Deployment", f"support-{name}")))
        for name in ("drift", "judge", "scores")
    )
    assert words(drift)[:4] == ["penstock", "drift", "--every-s", "300"]
    assert words(judge)[:5] == ["penstock", "judge", "run", "--every-s", "600"]
    for measured in (drift, judge):
        told = words(measured)[words(measured).index("--metrics-host") :]
        assert told[:4] == ["--metrics-host", "0.0.0.0", "--metrics-port", "9091"]
        assert measured["ports"] == [{"name": "metrics", "containerPort": 9091}]
    assert "JUDGE_KEY" in environment(judge)
    assert "LANGFUSE_SECRET_KEY" in environment(scores)
    assert "JUDGE_KEY" not in environment(drift).keys() | environment(scores).keys()
    made = {m["metadata"]["name"] for m in manifests(exports["least"]) if m["kind"] == "Deployment"}
    assert not made & {"support-drift", "support-judge", "support-scores"}
    follows = containers(one(exports["follows"], "Deployment", "support-scores"))
    assert environment(next(follows))["PHOENIX_API_KEY"]["secretKeyRef"]["optional"] is True


def test_nobody_is_spoken_to_unless_a_policy_says_so(exports):
    policies = {
        m["metadata"]["name"]: m["spec"]
        for m in manifests(exports["everything"])
        if m["kind"] == "NetworkPolicy"
    }
    deny = policies["support-deny"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny
    assert "egress" not in deny
    (outside,) = policies["support-outside"]["egress"]
    assert outside["to"] == [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}]
    assert [port["port"] for port in outside["ports"]] == [443, 5432, 8443, 8444]
    (metrics,) = policies["support-to-gateway-metrics"]["ingress"]
    names = metrics["from"][0]["namespaceSelector"]["matchLabels"]
    assert names == {"kubernetes.io/metadata.name": "monitoring"}
    for spec in policies.values():
        for rule in spec.get("ingress", []):
            assert rule["from"], "an empty list would admit everybody"


def test_ports_of_the_recipes_own_addresses_are_open(exports):
    policies = [m for m in manifests(exports["follows"]) if m["kind"] == "NetworkPolicy"]
    (outside,) = [m for m in policies if m["metadata"]["name"] == "support-outside"]
    ports = [port["port"] for port in outside["spec"]["egress"][0]["ports"]]
    assert ports == [443, 5432, 6006, 6432]


@pytest.mark.parametrize("to", ["phoenix", "langfuse", "langsmith", "otlp"])
def test_the_collector_takes_what_the_gateway_sends_and_passes_it_on_with_its_own_keys(to):
    traces = TracesConfig(to=to, endpoint="https://traces.example.org", project="support")
    config = collector_config(traces)
    keys = dict.fromkeys(("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", "LANGSMITH_API_KEY"), "x")
    told = traces.model_copy(update={"endpoint": "http://support-collector:4318"})
    posts = urlsplit(target(told, keys).url)
    receiver = config["receivers"]["otlp"]["protocols"]["http"]
    assert receiver == {"endpoint": f"0.0.0.0:{posts.port}", "traces_url_path": posts.path}
    exporter = config["exporters"]["otlp_http"]
    assert exporter["traces_endpoint"] == target(traces, keys).url
    assert "${env:" in str(exporter) + str(config["extensions"])
    pipeline = config["service"]["pipelines"]["traces"]
    for part in ("receivers", "processors", "exporters"):
        assert set(pipeline[part]) == set(config[part])
    assert set(config["service"]["extensions"]) == set(config["extensions"])


def test_series_have_the_label_that_the_rules_ask_for(exports):
    files = exports["everything"]
    for name in ("support-gateway", "support-drift", "support-judge"):
        monitor = one(files, "ServiceMonitor", name)["spec"]
        service = one(files, "Service", name)
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        (endpoint,) = monitor["endpoints"]
        assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert endpoint["relabelings"] == [{"targetLabel": "recipe", "replacement": "support"}]
    groups = one(files, "PrometheusRule")["spec"]["groups"]
    exprs = [rule["expr"] for group in groups for rule in group["rules"]]
    assert any('recipe="support"' in expr for expr in exprs)
    assert not [m for m in manifests(exports["follows"]) if m["kind"] == "PrometheusRule"]


def test_the_volume_is_shared_and_a_bucket_needs_none(exports):
    claim = one(exports["everything"], "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    mounts = {
        mount["mountPath"]
        for container in containers(one(exports["follows"], "Deployment", "support-gateway"))
        for mount in container["volumeMounts"]
    }
    assert "/srv/penstock/.penstock" in mounts
    assert not [m for m in manifests(exports["least"]) if m["kind"] == "PersistentVolumeClaim"]


def test_another_recipe_is_another_config_map_so_that_pods_roll(tmp_path):
    before = one(exported(tmp_path, LEAST), "ConfigMap")
    after = one(exported(tmp_path, LEAST + "  # changed\n"), "ConfigMap")
    assert before["metadata"]["name"] != after["metadata"]["name"]
    assert before["immutable"]


@pytest.mark.slow
def test_another_recipe_leaves_the_ray_cluster_as_it_is(tmp_path):
    before = exported(tmp_path, EVERYTHING)
    after = exported(tmp_path, EVERYTHING + "  max_queue: 7\n")
    assert before["base/gateway.yaml"] != after["base/gateway.yaml"]
    assert before["base/ray.yaml"] == after["base/ray.yaml"]


@pytest.mark.parametrize(
    ("written", "secret"),
    [
        ("ledger: postgresql://penstock:s3cr3t-w0rd@db/penstock", "s3cr3t-w0rd"),
        ("ledger: ${PENSTOCK_LEDGER}  # AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ],
)
def test_a_secret_in_the_recipe_is_refused_and_not_repeated(tmp_path, written, secret):
    with pytest.raises(RecipeError) as caught:
        exported(tmp_path, LEAST.replace("ledger: ${PENSTOCK_LEDGER}", written))
    assert secret not in f"{caught.value.message} {caught.value.hint}"
    assert "${VAR}" in caught.value.hint


@pytest.mark.slow
def test_an_adapters_password_is_refused_as_plain_text(tmp_path):
    text = EVERYTHING.replace("${REPLIES_PASSWORD}", "opensesame")
    with pytest.raises(RecipeError, match=r"sources\.replies\.password as plain text") as caught:
        exported(tmp_path, text)
    assert "opensesame" not in str(caught.value)


def test_a_secret_in_an_override_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="a URL with a password"):
        exported(tmp_path, LEAST, "ledger=postgresql://a:opensesame@db/x")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("ledger: ${PENSTOCK_LEDGER}", "ledger: sqlite:///ledger.db"), "SQLite is for one host"),
        (
            ("tracking: http://mlflow.example.org:5000", "tracking: sqlite:///m.db"),
            "tracking: sqlite:///m.db: SQLite is for one host",
        ),
        (("{keys: true}", "{keys: false}"), "serve.keys is false"),
        (("serve: {keys: true}", ""), "serve.keys is false"),
        (("{keys: true}", "{keys: true, port: 0}"), "0 picks any port"),
        (("{keys: true}", "{keys: true, traces: {to: phoenix}}"), "without an endpoint"),
        (
            (
                "{keys: true}",
                "{keys: true, models: {s: {backend: {ray_serve: {inside: ctranslate2}}}}}",
            ),
            "read the store as a folder",
        ),
        (
            ("{keys: true}", "{keys: true, models: {a.b: {version: 1, backend: vllm}, a-b: {}}}"),
            "cannot tell it by 'a-b'",
        ),
        (
            (
                "{keys: true}",
                "{keys: true, models: {v: {source: /mnt/model, backend: vllm}}}",
            ),
            "no model that a pod could fetch",
        ),
        (("s3://models/support", "${STORE}"), "must be known now"),
        (("s3://models/support", "../store"), "must be known now"),
    ],
)
def test_a_recipe_that_pods_cannot_serve_is_refused(tmp_path, change, says):
    with pytest.raises(RecipeError, match=re.escape(says)) as caught:
        exported(tmp_path, LEAST.replace(*change))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image": None}, "--image is missing"),
        ({"image": "penstock"}, "name a tag"),
        ({"image": "penstock:latest"}, "name a tag"),
        ({"image": "Pen stock:1"}, "not an image"),
        ({"namespace": "Support"}, "--namespace: received 'Support'"),
        ({"namespace": "a" * 64}, "--namespace"),
        ({"name": "-support"}, "--name: received '-support'"),
        ({"name": "s" * 31}, "--name"),
        ({"secret": "my_secret"}, "--secret: received 'my_secret'"),
        ({"memory": "4 GB"}, "a quantity, such as"),
        ({"schedule": "every day"}, "--schedule"),
        ({"min_replicas": 7, "max_replicas": 3}, "min_replicas 7 is above max_replicas 3"),
        ({"egress_ports": (0,)}, "--egress-ports"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_received(options, says):
    given = {"image": IMAGE, **options}
    given = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(RecipeError, match=re.escape(says)):
        KubernetesOptions.checked("support", **given)


def test_an_image_by_digest_needs_no_tag():
    image = f"localhost:5000/penstock@sha256:{'0' * 64}"
    assert KubernetesOptions.checked("support", image=image).image == image


def test_a_recipes_name_becomes_a_label():
    options = KubernetesOptions.checked("Support_DE.v2", image=IMAGE)
    assert (options.name, options.namespace) == ("support-de-v2", "support-de-v2")
    assert options.secret == "support-de-v2-secrets"


def test_ray_in_the_manifests_is_the_ray_that_is_tested():
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text()
    version = KubernetesOptions.checked("support", image=IMAGE).ray_version
    assert f"\nray=={version}\n" in constraints.replace("[", "==").replace("\r", "")


@pytest.mark.slow
def test_mlflow_understands_its_command(exports):
    from mlflow.cli import cli
    from mlflow.server.security_utils import is_allowed_host_header

    container = next(containers(one(exports["everything"], "Deployment", "support-mlflow")))
    line = container["command"]
    assert line[:2] == ["mlflow", "server"]
    server = cli.commands["server"]
    context = server.make_context("server", line[2:])
    assert context.params["artifacts_destination"] == "/srv/mlflow"
    hosts = context.params["allowed_hosts"].split(",")
    for host in ("support-mlflow:5000", "10.1.2.3:5000", "support-mlflow.support.svc:5000"):
        assert is_allowed_host_header(hosts, host)
    assert not is_allowed_host_header(hosts, "evil.example.org")
    backend = next(p for p in server.params if p.name == "backend_store_uri")
    assert backend.envvar == "MLFLOW_BACKEND_STORE_URI"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ray_serve_understands_its_config_and_builds_the_application(exports, tmp_path):
    pytest.importorskip("ray")
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as built
    from ray.serve.schema import ServeDeploySchema

    from penstock.errors import ServingError
    from penstock.serving.backends import ray_store_check

    text = one(exports["everything"], "RayService")["spec"]["serveConfigV2"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    (application,) = config.applications
    assert application.import_path == "penstock.serving.backends.ray_store_check:application"
    assert application.args == {"store": "/mnt/penstock/support"}
    built(ray_store_check.application, application.args)
    with pytest.raises(ValueError, match="misspelt"):
        built(ray_store_check.application, {"misspelt": ""})
    ray_store_check.StoreCheck(str(tmp_path)).check_health()
    with pytest.raises(ServingError, match="is not there on"):
        ray_store_check.StoreCheck(str(tmp_path / "nowhere"))


def parsed_by(command, line):
    """A command line as the command itself reads it; fails where it would."""
    while getattr(command, "commands", None) and not line[0].startswith("-"):
        command = command.commands[line.pop(0)]
    return command.make_context(command.name, line, resilient_parsing=False).params


def test_penstock_understands_every_command_line(exports):
    penstock = typer.main.get_command(app)
    seen = set()
    for files in exports.values():
        for container in (c for m in manifests(files) for c in containers(m)):
            if "penstock" in container.get("command", []) + container.get("args", []):
                line = words(container)[1:]
                seen.add(line[0])
                parsed_by(penstock, line)
    assert seen == {"serve", "run", "model", "watch", "drift", "judge", "scores"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ray_understands_how_it_is_started(exports):
    from ray.scripts.scripts import start

    files = exports["everything"]
    (container,) = containers(one(files, "Deployment", "support-gateway"))
    line = shlex.split(container["command"][2].partition("&&")[0])
    assert line[:2] == ["ray", "start"]
    assert parsed_by(start, line[2:])["address"] == "support-ray-head-svc:6379"
    for kind in ("RayService", "RayJob"):
        spec = one(files, kind)["spec"]
        spec = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            parsed_by(start, [f"--{key}={value}" for key, value in group["rayStartParams"].items()])


@pytest.mark.slow
def test_the_recipe_is_loaded_whatever_the_environment_lacks(tmp_path):
    found = loaded(tmp_path, EVERYTHING)
    assert found.variables == ("PENSTOCK_LEDGER", "REPLIES_PASSWORD")
    assert found.recipe.ledger == "${PENSTOCK_LEDGER}"
