"""``penstock export`` for clusters, as a person types it."""

import pytest
import typer
from typer.testing import CliRunner

from cluster_recipes import EVERYTHING, IMAGE, LEAST
from penstock.cli import app
from penstock.errors import PenstockError
from penstock.orchestrators.databricks import DatabricksOptions
from penstock.orchestrators.github import WorkflowOptions
from penstock.orchestrators.kubernetes import KubernetesOptions

OVERLAY = "overlays/production/kustomization.yaml"


@pytest.fixture
def export(tmp_path):
    """Runs the command on a recipe in an empty folder."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LEAST)

    def run(*words, tool="kubernetes"):
        given = ["--recipe", str(recipe), "--output", str(tmp_path / "out"), *words]
        return CliRunner().invoke(app, ["export", tool, *given])

    return run


def said(result):
    assert isinstance(result.exception, PenstockError), result.output
    return result.exception.message


def test_the_second_export_writes_nothing_and_the_check_agrees(export, tmp_path):
    assert export("--image", IMAGE).exit_code == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert export("--image", IMAGE).exit_code == 0
    assert export("--image", IMAGE, "--check").exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


@pytest.mark.slow
def test_another_image_is_drift_until_it_is_exported(export):
    export("--image", IMAGE)
    newer = IMAGE.replace("0.1.0", "0.2.0")
    assert "would be written otherwise" in said(export("--image", newer, "--check"))
    assert export("--image", newer).exit_code == 0
    assert export("--image", newer, "--check").exit_code == 0


@pytest.mark.slow
def test_an_overlay_is_the_users_and_what_is_under_base_is_not(export, tmp_path):
    export("--image", IMAGE)
    overlay = tmp_path / "out" / OVERLAY
    mine = overlay.read_text() + "nameSuffix: -eu\n"
    overlay.write_text(mine)
    assert export("--image", IMAGE, "--force").exit_code == 0
    assert export("--image", IMAGE, "--check").exit_code == 0
    assert overlay.read_text() == mine
    gateway = tmp_path / "out" / "base" / "gateway.yaml"
    gateway.write_text(gateway.read_text() + "# mine\n")
    assert "Changed by hand" in said(export("--image", IMAGE))
    assert export("--image", IMAGE, "--force").exit_code == 0
    assert "# mine" not in gateway.read_text()


@pytest.mark.slow
def test_every_option_of_the_command_is_one_of_the_exports(export, tmp_path):
    (tmp_path / "recipe.yaml").write_text(EVERYTHING)
    words = [
        *("--image", IMAGE, "--name", "s", "--namespace", "n", "--secret", "k"),
        *("--min-replicas", "1", "--max-replicas", "2", "--queued", "3", "--cpu", "500m"),
        *("--memory", "1Gi", "--run-cpu", "8", "--run-memory", "2Gi", "--run-gpus", "1"),
        *("--schedule", "0 3 * * 1", "--storage", "1Ti", "--storage-class", "nfs"),
        *("--mlflow", "--egress-port", "9000", "--monitoring-namespace", "prom"),
        *("--client-namespace", "apps", "--ray-version", "2.59.0"),
        *("--collector-image", "otel/x:1", "--vllm-image", "vllm/x:1"),
    ]
    result = export(*words)
    assert result.exit_code == 0, result.exception
    text = "".join(p.read_text() for p in (tmp_path / "out").rglob("*.yaml"))
    for word in words:
        if not word.startswith("--"):
            assert word in text


@pytest.mark.parametrize(
    ("tool", "options"),
    [
        ("kubernetes", KubernetesOptions),
        ("databricks", DatabricksOptions),
        ("github", WorkflowOptions),
    ],
)
def test_every_option_of_an_export_is_one_of_its_command(tool, options):
    command = typer.main.get_command(app).commands["export"].commands[tool]
    about_the_files = {"output", "recipe", "set_", "force", "check"}
    flags = {one.name for one in command.params} - about_the_files
    assert {name.removesuffix("_") for name in flags} == set(options.model_fields)


def test_no_image_and_a_folder_that_cannot_be_written_are_said(export, tmp_path):
    assert "--image is missing" in said(export())
    (tmp_path / "out").write_text("in the way")
    said(export("--image", IMAGE))
    assert (tmp_path / "out").read_text() == "in the way"
