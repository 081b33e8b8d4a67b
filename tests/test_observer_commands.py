"""``penstock export prometheus`` and ``grafana``: what is typed, and what comes of mistakes."""

import pytest
import yaml
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import PenstockError, RecipeError

RECIPE = """
name: demo
sources: {files: {type: files, paths: data/*.jsonl}}
evaluate: {tasks: [word_order]}
gate: {min: {word_order: 0.6}}
"""


@pytest.fixture
def export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def call(tool, *arguments):
        done = CliRunner().invoke(app, ["export", tool, "--output", "out", *arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return tmp_path / "out"

    return call


def test_prometheus_is_told_what_is_typed(export):
    out = export(
        "prometheus",
        *("--target", "a:1", "--target", "b:2"),
        *("--gateway", "http://gateway:8000", "--alertmanager", "alerts:9093"),
        *("--secret-file", "/run/secrets/x", "--set", "observe.slo.window_days=14"),
    )
    scraped = yaml.safe_load((out / "prometheus.yml").read_text())
    assert scraped["scrape_configs"][0]["static_configs"][0]["targets"] == ["a:1", "b:2"]
    (manager,) = scraped["alerting"]["alertmanagers"]
    assert manager["static_configs"][0]["targets"] == ["alerts:9093"]
    told = yaml.safe_load((out / "alertmanager.yml").read_text())
    (webhook,) = told["receivers"][0]["webhook_configs"]
    assert webhook["url"] == "http://gateway:8000/v1/alerts"
    assert webhook["http_config"]["authorization"]["credentials_file"] == "/run/secrets/x"
    assert "[14d]" in (out / "rules.yml").read_text()


def test_grafana_finds_the_dashboards_where_they_are_written(export):
    out = export("grafana")
    provider = yaml.safe_load((out / "provisioning/dashboards/penstock.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert folder == str(out / "dashboards")
    assert len(list((out / "dashboards").glob("*.json"))) == 4


def test_a_rule_that_somebody_has_edited_stays_until_force(export):
    out = export("prometheus")
    rules = out / "rules.yml"
    rules.write_text(rules.read_text().replace("> 14.4", "> 10"))
    with pytest.raises(PenstockError, match=r"Changed by hand: out/rules\.yml"):
        export("prometheus", "--set", "observe.slo.availability=0.99")
    assert "> 10" in rules.read_text()
    export("prometheus", "--force")
    assert "> 14.4" in rules.read_text()


def test_a_recipe_without_metrics_is_refused_and_nothing_is_written(export, tmp_path):
    with pytest.raises(RecipeError, match="metrics_port is null"):
        export("prometheus", "--set", "serve.metrics_port=null")
    assert not (tmp_path / "out").exists()
