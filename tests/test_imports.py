import json
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import open_pipeline
from tiny_project import write_project

pytestmark = pytest.mark.slow

HOME = Path(__file__).parent.parent
HEAVY = [
    "airflow",
    "ctranslate2",
    "datasets",
    "deepspeed",
    "fastapi",
    "great_expectations",
    "lm_eval",
    "mlflow",
    "openai",
    "opentelemetry",
    "pandas",
    "polars",
    "pyspark",
    "ray",
    "scipy.optimize",
    "scipy.special",
    "sentence_transformers",
    "torch",
    "transformers",
    "trl",
    "uvicorn",
]


def modules_after(script, *arguments):
    """The modules a fresh interpreter has loaded once it has run ``script``."""
    script += "\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(*arguments):
    return f"""
import sys
from penstock.cli import main
sys.argv = ["penstock", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(
    "script",
    [
        "import penstock",
        "from penstock import Ledger, load_recipe, open_pipeline",
        command("--help"),
        command("run", "--help"),
    ],
    ids=["package", "public names", "help", "help of a command"],
)
def test_nothing_heavy_is_loaded(script):
    assert modules_after(script) & set(HEAVY) == set()


def test_help_loads_no_recipe_and_no_database():
    loaded = modules_after(command("--help"))
    assert loaded & {"sqlalchemy", "pydantic", "pyarrow", "penstock.recipe"} == set()


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    """A recipe whose first stage has been run, in a run that is open."""
    recipe = write_project(tmp_path_factory.mktemp("project"))
    pipeline = open_pipeline(recipe)
    pipeline.step("ingest", pipeline.start(key="k").id)
    pipeline.ledger.close()
    return recipe


def test_commands_that_only_look_load_nothing_heavy(ingested):
    """A stage that is a hit, a plan and lists, one after the other in one interpreter."""
    here = ("-r", str(ingested))
    hit = ("step", "ingest", "--task", "--key", "k", *here)
    script = "".join(
        command(*words)
        for words in (hit, ("plan", *here), ("runs", *here), ("rollout", "history", *here))
    )
    assert modules_after(script) & set(HEAVY) == set()


def test_the_package_itself_loads_none_of_its_modules():
    modules = {name for name in modules_after("import penstock") if name.startswith("penstock.")}
    assert modules == set()


def test_the_check_for_heavy_modules_can_fail():
    assert "sqlalchemy" in modules_after("from penstock import Ledger; Ledger")


def test_looking_up_every_public_name_gives_an_object():
    import penstock

    assert all(getattr(penstock, name) is not None for name in penstock.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        penstock.Pipelin  # noqa: B018


def lint_imports(config):
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed: it is in the extra `check`")
    return subprocess.run(
        [tool, "--config", config, "--no-cache"], cwd=HOME, capture_output=True, text=True
    )


def test_imports_go_one_way():
    done = lint_imports(HOME / "pyproject.toml")
    assert done.returncode == 0, done.stdout


def test_the_check_of_directions_can_fail(tmp_path):
    """A layer that is certainly crossed: the pipeline imports the stages."""
    config = tmp_path / "pyproject.toml"
    config.write_text(
        """
[tool.importlinter]
root_package = "penstock"
[[tool.importlinter.contracts]]
name = "upside down"
type = "layers"
layers = ["penstock.stages", "penstock.pipeline"]
"""
    )
    done = lint_imports(config)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
