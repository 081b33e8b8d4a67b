"""The exported DAG file as text: complete, plain, never overwritten once edited."""

import ast
import re

import pytest
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import PenstockError
from penstock.exported import check_file, write_file
from penstock.orchestrate_section import STAGES
from penstock.orchestrators.airflow_file import dag_file
from penstock.orchestrators.base import read_flow

EVERYTHING = """\
orchestrate:
  penstock: /opt/penstock/bin/penstock
  notify: {email: [a@b.example], email_from: c@d.example, webhooks: [HOOK]}
  executors:
    validate: {type: databricks, job_id: 7}
    train: {type: kubernetes, image: x:1, gpus: 2, memory: 4Gi, secrets: [keys]}
    evaluate: {type: virtualenv, python: /venv/bin/python}
"""
SECTIONS = ["", EVERYTHING, "orchestrate: {schedule: null}\n"]
SECTIONS += [
    "orchestrate: {on_events: false}\n",
    "orchestrate: {schedule: null, on_events: false}\n",
]


def flow(folder, section=""):
    path = folder / "recipe.yaml"
    path.write_text(f"name: support\n{section}")
    return read_flow(path)


def names(node):
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


@pytest.mark.parametrize("section", SECTIONS, ids=["default", "all", "events", "cron", "asked"])
def test_the_file_has_every_stage_and_imports_all_it_uses_and_no_more(tmp_path, section):
    text = dag_file(flow(tmp_path, section))
    tree = ast.parse(text)
    assert re.findall(r'task_id="(\w+)"', text) == [*STAGES[:2], "due", *STAGES[2:]]
    imported = {
        alias.asname or alias.name
        for one in ast.walk(tree)
        if isinstance(one, ast.Import | ast.ImportFrom)
        for alias in one.names
    }
    assert imported <= names(tree) | {"annotations"}
    assert "penstock" not in {one.split(".")[0] for one in imported}
    made = {one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.ClassDef)}
    stored = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    arguments = {one.arg for one in ast.walk(tree) if isinstance(one, ast.arg)}
    builtins = set(dir(__builtins__)) | set(__builtins__ if isinstance(__builtins__, dict) else ())
    handlers = {n.name for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler)}
    assert names(tree) <= imported | made | stored | arguments | builtins | handlers


def test_nothing_in_the_file_depends_on_who_exports_it(tmp_path):
    one = flow(tmp_path, EVERYTHING)
    assert dag_file(one) == dag_file(one)
    assert 'penstock = "/opt/penstock/bin/penstock"' in dag_file(one)
    assert "HOOK" in dag_file(one)


def test_a_file_that_was_edited_is_kept_and_one_that_was_not_is_replaced(tmp_path):
    path = tmp_path / "dags" / "support.py"
    assert write_file(path, dag_file(flow(tmp_path)))
    assert not write_file(path, dag_file(flow(tmp_path)))
    newer = dag_file(flow(tmp_path, "orchestrate: {retries: 5}\n"))
    with pytest.raises(PenstockError, match="would be written otherwise"):
        check_file(path, newer, "penstock export airflow")
    assert write_file(path, newer)
    path.write_text(newer.replace('"retries": 5', '"retries": 6'))
    for attempt in (lambda: check_file(path, newer, "x"), lambda: write_file(path, newer)):
        with pytest.raises(PenstockError, match="was changed by hand"):
            attempt()
    assert write_file(path, newer, force=True)


def test_the_command_writes_and_checks(tmp_path, monkeypatch):
    flow(tmp_path, EVERYTHING)
    monkeypatch.chdir(tmp_path)
    call = ["export", "airflow"]
    with pytest.raises(PenstockError, match="There is no dags"):
        CliRunner().invoke(app, [*call, "--check"], catch_exceptions=False)
    assert CliRunner().invoke(app, call).exit_code == 0
    assert CliRunner().invoke(app, [*call, "--check"]).exit_code == 0
    assert (tmp_path / "dags" / "support.py").exists()
