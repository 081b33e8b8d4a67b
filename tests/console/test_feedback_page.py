"""Feedback in the console: beside its answers, with what the next run makes of it."""

import re

import pytest
import yaml

from console_browser import Browser
from console_project import RECIPE
from penstock.console import create_console
from penstock.pipeline import open_pipeline
from penstock.stages.ingest import Ingester, sources, tables_of
from traffic_rows import Writers, asked, correction, opinion, response_id

HOSTILE = "<script>alert(1)</script>"
PEOPLE = {"people": {"type": "requests", "store": "store"}}


def words(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


class Project:
    """A recipe that takes feedback, and a browser on it."""

    def __init__(self, folder, sources=PEOPLE):
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, "sources": {**RECIPE["sources"], **sources}}))
        self.folder, self.pipeline = folder, open_pipeline(path)
        self.writers = Writers(self.pipeline.store.root)
        self.browser = Browser(create_console(self.pipeline))

    @property
    def page(self):
        return self.browser.get("/feedback").text

    def of(self, name):
        """What the page says of one response."""
        (found,) = (one for one in self.page.split("<article>") if name in one)
        return words(found)

    def ingest(self):
        """Do what the ingest stage does with the source."""
        recipe, store = self.pipeline.recipe, self.pipeline.store
        source = sources(recipe)["people"]
        table, dead = tables_of(recipe, store, "people")
        ingester = Ingester("people", source, table, dead, self.folder / "spool")
        for unit in source.snapshot():
            ingester.take(unit)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.mark.slow
def test_opinions_stand_beside_what_was_asked_and_answered(project):
    older, name = response_id(number=-5), response_id()
    project.writers.log(asked(older), asked(name, prompt="Where is my invoice?", answer="There."))
    project.writers.say(opinion(older, comment="Fine."))
    project.writers.say(opinion(name, score=0.0, comment="Where is there?"))
    assert project.page.index(name) < project.page.index(older)
    told = project.of(name)
    assert "Asked Where is my invoice? Answered There." in told
    assert "thumb Where is there? 0" in told
    assert "penny version 3" in told


@pytest.mark.slow
def test_each_answer_says_whether_the_next_run_takes_it_and_why_not(project):
    names = [response_id(number=i) for i in range(6)]
    good, bad, corrected, early, alien, gone = names
    project.writers.log(
        *(asked(name) for name in (good, bad, corrected, alien)),
        asked(early, finish_reason="length"),
    )
    project.writers.say(
        *(opinion(good), opinion(bad, score=0.5), correction(corrected, "With your passkey.")),
        *(opinion(early), opinion(alien, tenant="stranger"), opinion(gone)),
    )
    assert "taken the next run takes the answer" in project.of(good)
    assert "left out its score 0.50 is below 0.75" in project.of(bad)
    assert "taken the next run takes the correction" in project.of(corrected)
    assert "left out the answer ended early: length" in project.of(early)
    assert "left out nobody whose word counts has judged it" in project.of(alien)
    assert "left out it is not in the request log" in project.of(gone)


@pytest.mark.slow
def test_what_a_run_has_read_is_not_promised_again_and_what_is_new_about_it_is(project):
    name, fixed = response_id(), response_id(number=1)
    project.writers.log(asked(name), asked(fixed))
    project.writers.say(opinion(name), correction(fixed, "Like this."))
    project.ingest()
    assert "left out an earlier run has read it" in project.of(name)
    assert "left out an earlier run has read the correction" in project.of(fixed)
    project.writers.say(correction(name, "Or like that."))
    assert "taken the next run takes the correction" in project.of(name)


def test_a_source_of_another_store_takes_nothing_of_this_one(tmp_path):
    (tmp_path / "other").mkdir()
    project = Project(tmp_path, {"people": {"type": "requests", "store": "other"}})
    name = response_id()
    project.writers.log(asked(name))
    project.writers.say(opinion(name))
    assert "No source of the recipe takes this feedback" in words(project.page)
    assert "taken" not in project.of(name)


def test_a_limit_for_each_rater_is_said(tmp_path):
    project = Project(tmp_path, {"people": {**PEOPLE["people"], "max_rows_per_rater": 3}})
    name = response_id()
    project.writers.log(asked(name))
    project.writers.say(opinion(name))
    assert "unless its rater alone has given 3 rows before it" in project.of(name)


def test_texts_are_escaped_redacted_and_cut_short(project):
    name, bare = response_id(), response_id(number=1)
    project.writers.log(
        asked(name, prompt=f"I am ann@example.com {HOSTILE}", answer="y" * 1_000_000),
        asked(bare, prompt=None, answer=None),
    )
    project.writers.say(
        correction(name, f"{HOSTILE} bob@example.com", comment=HOSTILE, rater=HOSTILE),
        opinion(bare),
    )
    page = project.page
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4
    assert "@example.com" not in page
    assert "[EMAIL]" in page
    assert len(page) < 20_000
    assert "not kept: serve.log.content is off" in project.of(bare)


def test_only_the_last_opinions_are_shown(project):
    for number in range(3):
        names = [response_id(number=100 * number + i) for i in range(30)]
        project.writers.log(*map(asked, names))
        project.writers.say(*map(opinion, names))
    assert project.page.count("<article>") == 50
