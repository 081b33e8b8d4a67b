"""A run's page: what its stages came to, in one file, whatever stands in the run."""

import re

import pytest
from typer.testing import CliRunner

from console_project import ConsoleProject
from penstock.cli import app
from penstock.run_page import page_of

MARK = "<script>alert('x')</script>"


@pytest.fixture
def project(tmp_path):
    return ConsoleProject(tmp_path, MARK)


def test_it_shows_each_stage_its_rows_and_the_gates_evidence(project):
    page = page_of(project.pipeline, project.run_id)
    for said in (
        "12,410 kept",
        "10,384 kept, 1,904 removed",
        "1.5 s, ran",
        "Gate: INCONCLUSIVE",
        "Looked at it.",
    ):
        assert said in page
    assert "Difference to the serving model" in page
    assert f"{10:064x}"[:20] in page


def test_what_comes_from_outside_is_text_and_nothing_is_fetched(project):
    page = page_of(project.pipeline, project.run_id)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=|url\(|@import", page)


@pytest.mark.slow
def test_a_run_that_failed_early_has_a_page_too(project):
    failed = project.ledger.runs()[-1]
    page = page_of(project.pipeline, failed.id)
    assert "More than 1 % of the rows are bad." in page
    assert "Where the time went" not in page


@pytest.mark.slow
def test_a_decision_whose_files_are_gone_is_left_out(project):
    for path in project.recipe.parent.rglob("decision.json"):
        path.unlink()
    assert "Gate: INCONCLUSIVE" not in page_of(project.pipeline, project.run_id)


def test_the_command_writes_it(project, tmp_path):
    where = str(tmp_path / "run.html")
    words = ["show", project.run_id, "--recipe", str(project.recipe), "--report", where]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run.html").read_text() == page_of(project.pipeline, project.run_id)
