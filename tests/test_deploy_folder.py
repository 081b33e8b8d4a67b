"""What deploy/ holds is what Penstock exports, and runs as it says."""

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from penstock.exported import MANIFEST
from penstock.monitoring.dashboards import grafana_files
from penstock.monitoring.prometheus_files import Addresses, prometheus_files
from penstock.orchestrators.kubernetes.observing import collector_config
from penstock.orchestrators.kubernetes.options import KubernetesOptions
from penstock.recipe_file import load_recipe
from penstock.traces_section import TracesConfig

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCHEMA = ".venvs/compose/lib/python*/site-packages/compose/config/compose_spec.json"
DASHBOARDS = "/etc/grafana/penstock"


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def committed(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def test_prometheus_files_are_what_is_exported():
    recipe = load_recipe(ROOT / "recipes/serve-on-ray.yaml")
    exported = prometheus_files(recipe, Addresses.of(recipe))
    assert committed(DEPLOY / "prometheus") == exported, (
        "Run: penstock export prometheus --recipe recipes/serve-on-ray.yaml "
        "--output deploy/prometheus"
    )


def test_dashboards_are_what_is_exported():
    exported = grafana_files("http://127.0.0.1:9091", DASHBOARDS)
    assert committed(DEPLOY / "grafana") == exported, (
        f"Run: penstock export grafana --output deploy/grafana --dashboards {DASHBOARDS}"
    )


@pytest.mark.slow
def test_compose_is_a_compose_file(compose):
    made = subprocess.run(
        [ROOT / "scripts/make-env.sh", "compose"], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no schema: {made.stderr[-200:]}")
    (schema,) = ROOT.glob(SCHEMA)
    check = jsonschema.Draft201909Validator(json.loads(schema.read_text())).validate
    # A project's name is younger than this copy of the specification.
    old = {key: value for key, value in compose.items() if key != "name"}
    check(old)
    with pytest.raises(jsonschema.ValidationError):
        check({**old, "services": {"x": {"image": "a", "portz": []}}})


def test_images_are_pinned_to_a_version(compose):
    for name, service in compose["services"].items():
        tag = service["image"].partition(":")[2]
        assert re.fullmatch(r"(v|version-)?\d+\.\d+\.\d+", tag), name


def test_the_collector_is_the_one_that_kubernetes_gets_and_its_exporter_has_the_same_name(compose):
    image = KubernetesOptions.model_fields["collector_image"].default
    assert compose["services"]["otel-collector"]["image"] == image
    here = yaml.safe_load((DEPLOY / "otel-collector.yaml").read_text())
    there = collector_config(TracesConfig(to="phoenix", endpoint="http://phoenix:6006"))
    assert {name.partition("/")[0] for name in here["exporters"]} == set(there["exporters"])
    for part in ("receivers", "processors", "exporters"):
        assert set(here["service"]["pipelines"]["traces"][part]) == set(here[part])


def test_everything_listens_on_loopback(compose):
    services = compose["services"]
    for name in ("prometheus", "alertmanager"):
        (listens,) = [one for one in services[name]["command"] if "web.listen-address" in one]
        assert "=127.0.0.1:" in listens
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert services["phoenix"]["environment"]["PHOENIX_HOST"] == "127.0.0.1"
    collector = yaml.safe_load((DEPLOY / "otel-collector.yaml").read_text())
    assert collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].startswith("127.0.0.1:")
    assert not any("ports" in service for service in services.values())


def test_secrets_are_in_files_that_are_not_committed(compose):
    for service in compose["services"].values():
        for name in service.get("environment", {}):
            assert not re.search("PASSWORD|SECRET|TOKEN|KEY", name) or name.endswith("__FILE")
    for secret in compose["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    ignored = subprocess.run(
        ["git", "check-ignore", "deploy/secrets/x"], cwd=ROOT, capture_output=True, check=False
    )
    assert ignored.returncode in (0, 128)  # 128: not a checkout


def test_what_is_mounted_is_there_and_leads_where_the_files_say(compose):
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            found = source in compose["volumes"] or (DEPLOY / source).exists()
            assert found, source
    targets = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert DASHBOARDS in targets
    alertmanager = yaml.safe_load((DEPLOY / "prometheus/alertmanager.yml").read_text())
    webhook = alertmanager["receivers"][0]["webhook_configs"][0]
    file = webhook["http_config"]["authorization"]["credentials_file"]
    (secret,) = compose["services"]["alertmanager"]["secrets"]
    assert secret["target"] == f"/etc/alertmanager/{file}"


def test_prometheus_keeps_as_many_days_as_a_budget_has(compose):
    recipe = load_recipe(ROOT / "recipes/serve-on-ray.yaml")
    (kept,) = [one for one in compose["services"]["prometheus"]["command"] if "retention" in one]
    assert int(re.search(r"(\d+)d", kept)[1]) > recipe.observe.slo.window_days
