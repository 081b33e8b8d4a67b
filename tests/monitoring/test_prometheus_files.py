import shutil
import subprocess

import pytest
import yaml

from penstock.errors import RecipeError
from penstock.exported import write_files
from penstock.monitoring.alert_rules import rules
from penstock.monitoring.prometheus_files import RULES, Addresses, prometheus, prometheus_files
from penstock.monitoring.slo_rules import BURN_ALERTS
from penstock.recipe_file import load_recipe

pytestmark = pytest.mark.slow

RECIPE = """
name: demo
sources: {files: {type: files, paths: data/*.jsonl}}
evaluate: {tasks: [word_order]}
gate: {min: {word_order: 0.6}}
"""
# Names that would end a string in PromQL, or be a template in an annotation.
HOSTILE = r"""
serve:
  models:
    'say "{{ $labels.x }}" \': {max_queue: 3}
    plain: {source: all-MiniLM-L6-v2, task: embed}
    no-queue: {source: all-MiniLM-L6-v2, task: embed, max_queue: 0}
observe:
  drift: {window_s: 3600}
  slo:
    availability: 0.9
    latency: {within_s: 0.5, share: 0.55}
    first_token: null
    window_days: 90
    min_requests: 1000
    max_days_without_training: null
"""
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")


@pytest.fixture
def recipe(tmp_path):
    def load(more="", overrides=None):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE + more)
        return load_recipe(path, overrides)

    return load


def promtool(folder, *words):
    return subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True)


def exported(folder, recipe):
    write_files(folder, prometheus_files(recipe, Addresses.of(recipe)), force=True)
    return folder


def alerts(recipe):
    found = [rule for group in rules(recipe)["groups"] for rule in group["rules"]]
    return {rule["alert"]: rule for rule in found if "alert" in rule}


@needs_promtool
@pytest.mark.parametrize("more", ["", HOSTILE], ids=["defaults", "hostile names"])
def test_prometheus_finds_no_fault_and_every_alert_fires_when_it_should_and_only_then(
    recipe, tmp_path, more
):
    folder = exported(tmp_path / "out", recipe(more))
    checked = promtool(folder, "check", "config", "prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    assert "duplicate" not in checked.stdout
    tested = promtool(folder, "test", "rules", "rules_test.yml")
    assert tested.returncode == 0, tested.stderr + tested.stdout


@needs_promtool
@pytest.mark.parametrize(
    ("rule", "edited"),
    [
        ("> 14.4", "> 9999"),
        ("burn_rate:5m{recipe", "burn_rate:1h{recipe"),
        ("* 30 >= 20", "* 30 >= 0"),
        ('state="rolled_back"', 'state="promoted"'),
    ],
    ids=["threshold", "short window", "floor", "label"],
)
def test_the_exported_tests_notice_an_edit_that_breaks_a_rule(recipe, tmp_path, rule, edited):
    few = recipe("observe: {slo: {latency: null, first_token: null}}")
    folder = exported(tmp_path / "out", few)
    text = (folder / RULES).read_text()
    assert rule in text
    (folder / RULES).write_text(text.replace(rule, edited))
    assert promtool(folder, "test", "rules", "rules_test.yml").returncode == 1


@pytest.mark.skipif(shutil.which("amtool") is None, reason="no amtool")
def test_alertmanager_finds_no_fault(recipe, tmp_path):
    folder = exported(tmp_path, recipe())
    checked = subprocess.run(
        ["amtool", "check-config", folder / "alertmanager.yml"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_thresholds_are_the_workbooks_for_thirty_days():
    assert [one.factor(30) for one in BURN_ALERTS] == [14.4, 6, 3, 1]


def test_all_alerts_say_what_to_do_and_how_urgent_it_is(recipe):
    for name, rule in alerts(recipe()).items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert len(rule["annotations"]["description"]) > 30, name
        assert rule["annotations"]["summary"], name


def test_what_is_null_in_the_recipe_has_no_rules(recipe):
    off = "observe: {slo: {latency: null, first_token: null, max_days_without_training: null}}"
    text = str(rules(recipe(off)))
    assert "duration" not in text
    assert "first_token" not in text
    assert "NoTraining" not in text
    assert "DriftNotLookedAt" not in text
    assert "NoTraining" in alerts(recipe())


def test_alerts_that_are_put_off_make_no_more_alerts(recipe):
    slo = rules(recipe())["groups"][0]["rules"]
    counted = [one["expr"] for one in slo if "llm_request" in one["expr"]]
    assert len(counted) == 4
    for expr in counted:
        series = expr.count("llm_request")
        assert expr.count('endpoint!="/v1/alerts"') == series


def test_thresholds_come_from_the_recipe(recipe):
    found = alerts(recipe("observe: {slo: {budget_share: 0.5, down_s: 7}}\nserve: {max_queue: 10}"))
    assert found["BudgetNearlySpent"]["expr"].endswith(">= 0.5")
    assert found["GatewayDown"]["for"] == "7s"
    assert found["QueueNearlyFull"]["expr"].count(">= 8") == 2


@pytest.mark.parametrize(
    "wrong",
    [
        "{availability: 1}",
        "{availability: 0.4}",
        "{latency: {within_s: 3}}",
        "{first_token: {within_s: 0.3}}",
        "{window_days: 1}",
        "{secret_env: 'my secret'}",
    ],
)
def test_objectives_that_cannot_be_measured_are_refused(recipe, wrong):
    with pytest.raises(RecipeError, match=r"observe\.slo"):
        recipe(f"observe: {{slo: {wrong}}}")


def test_metrics_that_are_off_leave_nothing_to_alert_on(recipe):
    with pytest.raises(RecipeError, match="metrics_port is null") as caught:
        prometheus_files(recipe("serve: {metrics_port: null}"), Addresses(("h:1",), "http://h:2"))
    assert "serve.metrics_port" in caught.value.hint


@pytest.mark.parametrize("port", ["port", "metrics_port"])
def test_a_port_that_nobody_knows_cannot_be_scraped_or_called(recipe, port):
    with pytest.raises(RecipeError, match=rf"serve\.{port} is 0"):
        Addresses.of(recipe(f"serve: {{{port}: 0}}"))


@pytest.mark.parametrize(
    "given",
    [
        {"targets": ("gateway",)},
        {"targets": ("gateway:99999",)},
        {"targets": ("a b:9090",)},
        {"gateway": "https://user:secret@host"},
        {"gateway": "ftp://host"},
        {"alertmanager": "http://host:9093"},
    ],
)
def test_what_is_no_address_is_refused(recipe, given):
    with pytest.raises(RecipeError, match=r"is no base URL|is not HOST:PORT"):
        Addresses.of(recipe(), **given)


def test_who_listens_everywhere_is_asked_on_this_host(recipe):
    at = Addresses.of(recipe("serve: {host: '::', keys: true}"))
    assert at.targets == ("[::1]:9090",)
    assert at.gateway == "http://[::1]:8000"


def test_every_gateway_is_scraped_under_the_recipes_name(recipe):
    at = Addresses.of(recipe(), ("a:1", "b:2"))
    (job,) = prometheus(recipe(), at)["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["a:1", "b:2"], "labels": {"recipe": "demo"}}]


def test_no_secret_is_in_the_files_and_people_can_read_them(recipe, monkeypatch):
    monkeypatch.setenv("PENSTOCK_ALERTS_SECRET", "a-secret-of-some-length")
    files = prometheus_files(recipe(), Addresses.of(recipe()))
    assert not any("a-secret" in text for text in files.values())
    webhook = yaml.safe_load(files["alertmanager.yml"])["receivers"][0]["webhook_configs"][0]
    assert webhook["http_config"]["authorization"]["credentials_file"] == "penstock_alerts_secret"
    assert "expr: |-\n" in files["rules.yml"]
