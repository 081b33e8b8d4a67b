"""Live traffic in the console: the last minutes by the log, and no more of it is read."""

import re
import time
from datetime import UTC, datetime

import pytest

from console_browser import Browser
from penstock.console import create_console
from penstock.console.live import live
from penstock.pipeline import open_pipeline
from penstock.traffic import Traffic
from traffic_rows import Writers, asked, response_id

HOSTILE = "<img src=x onerror=alert(1)>"


def words(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def request(ago_s=1.0, took_s=0.5, **more):
    """A request that came so long ago, and took so long."""
    told = {"prompt_tokens": 10, "completion_tokens": 4, "received_at_s": time.time() - ago_s}
    facts = asked(response_id(), **{**told, **more})
    facts.ended_s = facts.started_s + took_s
    return facts


@pytest.fixture
def writers(project):
    return Writers(project.pipeline.store.root)


def now_of(project, span_s=300.0):
    return live(Traffic.of(project.pipeline.store), datetime.now(UTC), span_s)


@pytest.mark.slow
def test_a_model_is_told_by_requests_failures_times_and_tokens(project, writers):
    writers.log(*(request(took_s=0.1 * number) for number in range(1, 11)))
    writers.log(
        request(status=503, error="backend_failed", response_id=None),
        request(error="backend_failed"),  # broke off in the middle
        request(status=429, error="rate_limited", response_id=None),
        request(status=499),
        request(shadow=True, took_s=99.0),
    )
    (model,) = now_of(project).models
    assert (model.model, model.version, model.num_requests) == ("penny", 3, 14)
    assert (model.num_failed, model.num_refused) == (2, 2)
    assert model.p50_s == pytest.approx(0.5, abs=0.11)
    assert model.p99_s == pytest.approx(1.0)
    assert (model.prompt_tokens, model.completion_tokens) == (140, 56)


@pytest.mark.slow
def test_versions_of_a_rollout_are_told_apart(project, writers):
    writers.log(request(), request(), request(served=None, model="far"))
    found = [(one.model, one.version, one.num_requests) for one in now_of(project).models]
    assert found == [("penny", 3, 2), ("far", None, 1)]


@pytest.mark.slow
def test_what_came_before_these_minutes_is_left_out(project, writers):
    now = datetime.now(UTC)
    writers.log(*(request(received_at_s=now.timestamp() - ago_s) for ago_s in (400, 195, 25)))
    found = live(Traffic.of(project.pipeline.store), now, 300.0)
    assert [one.num_requests for one in found.models] == [2]
    assert [i for i, one in enumerate(found.buckets) if one.num_answered] == [10, 27]
    (last,) = live(Traffic.of(project.pipeline.store), now, 60.0).models
    assert last.num_requests == 1


@pytest.mark.slow
def test_the_page_loads_itself_again_until_it_is_held(project, browser, writers):
    writers.log(request(model=HOSTILE))
    page = browser.get("/traffic").text
    assert '<meta http-equiv="refresh" content="5">' in page
    assert "<svg" in page
    assert HOSTILE not in page
    assert "onerror" in words(page.replace("&lt;", "").replace("&gt;", ""))
    held = browser.get("/traffic?minutes=15&every=0").text
    assert "refresh" not in held
    assert "Traffic of the last 15 minutes" in held
    assert "last 5 minutes" in browser.get("/traffic?minutes=9e9&every=-1").text


def test_no_traffic_and_no_log_are_said(project, browser):
    assert "No request was written down in these minutes" in browser.get("/traffic").text
    pipeline = open_pipeline(project.recipe, {"serve.log": None})
    page = Browser(create_console(pipeline, production=project.production)).get("/traffic").text
    assert "Requests are not logged" in page
    assert "refresh" not in page
