"""The image: linted, pinned, for the manifests' user, with nothing in it that is secret."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from cluster_recipes import EVERYTHING, exported
from penstock.orchestrators.kubernetes.project import HOME as RECIPE_HOME
from penstock.orchestrators.kubernetes.project import USER_ID

HOME = Path(__file__).parents[2]
DOCKERFILE = HOME / "deploy" / "Dockerfile"
HADOLINT = HOME / ".venvs" / "hadolint" / "bin" / "hadolint"


@pytest.fixture(scope="module")
def lines():
    """The instructions, each on one line."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    return [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def said(lines, word):
    return [rest for name, rest in lines if name == word]


@pytest.mark.slow
def test_hadolint_finds_nothing(tmp_path):
    made = subprocess.run(
        [HOME / "scripts" / "make-env.sh", "hadolint"], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"hadolint cannot be installed: {made.stderr.strip()[-300:]}")
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text().replace("USER 10001:10001\n", "USER root\n"))
    assert subprocess.run([HADOLINT, wrong], capture_output=True).returncode != 0


def test_the_base_is_pinned_to_a_python_that_penstock_supports(lines):
    base = dict(one.split("=", 1) for one in said(lines, "ARG"))["PYTHON"]
    assert re.fullmatch(r"3\.1[12]\.\d+-slim-[a-z]+", base)
    assert said(lines, "FROM") == ["python:${PYTHON} AS build", "python:${PYTHON}"]


def test_it_runs_as_the_user_that_the_manifests_name(lines):
    assert said(lines, "USER") == [f"{USER_ID}:{USER_ID}"]
    assert said(lines, "WORKDIR")[-1] == str(RECIPE_HOME)


def test_it_says_whether_it_is_healthy_by_the_gateways_own_answer(lines):
    (check,) = said(lines, "HEALTHCHECK")
    assert "http://127.0.0.1:8000/healthz" in check
    compile(yaml.safe_load(check.partition("CMD ")[2])[2], "HEALTHCHECK", "exec")


def test_what_is_copied_is_let_in_and_nothing_else_is(lines):
    allowed = (HOME / ".dockerignore").read_text().splitlines()
    assert allowed[1] == "*"
    let_in = {one[1:] for one in allowed if one.startswith("!")}
    copied = {
        word
        for rest in said(lines, "COPY")
        if not rest.startswith("--from")
        for word in rest.split()[:-1]
    }
    assert let_in == {name.replace("src", "src/penstock") for name in copied}
    assert all((HOME / name).exists() for name in let_in)


def test_no_secret_is_built_in(lines):
    for word in ("ARG", "ENV"):
        names = re.findall(r"([A-Z_]+)=", " ".join(said(lines, word)))
        assert names
        assert not [n for n in names if re.search("KEY|TOKEN|PASSWORD|SECRET|LEDGER", n)]


def test_every_extra_and_the_torch_are_the_projects_own(lines):
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    extras = dict(one.split("=", 1) for one in said(lines, "ARG"))["EXTRAS"].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    (torch,) = [one for one in project["optional-dependencies"]["train"] if "torch==" in one]
    assert torch in "\n".join(said(lines, "RUN"))


@pytest.mark.slow
def test_commands_of_the_manifests_are_in_it(tmp_path):
    found = set()
    for name, text in exported(tmp_path, EVERYTHING, schedule="@daily").items():
        if name.endswith(".yaml"):
            found |= set(re.findall(r"command:\n\s+- (\S+)", text))
    # vllm is another image's; sh runs ray, which comes with Penstock's extra.
    assert found == {"penstock", "mlflow", "sh", "vllm"}
