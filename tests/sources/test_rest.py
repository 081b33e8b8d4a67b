import json
import math
import os
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

import http_api
from http_api import send_json, serving
from ingest_project import IngestProject
from penstock.errors import SourceError, SourceUnavailable
from penstock.sources.base import ORIGIN, DeadLetter
from penstock.sources.rest import RestSource

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Pages by links in the JSON.
LINKS = {
    "path": "rows",
    "data_selector": "data",
    "paginator": "json_link",
    "paginator_options": {"next_url_path": "next"},
    "max_wait_s": 0.01,
}
CURSOR = {"cursor": "at", "key": "id", "cursor_param": "since", "settle_s": 0}


@pytest.fixture
def api():
    with serving() as running:
        yield running


def row(i, seconds=0):
    return {"id": i, "text": f"t{i}", "at": (NOON + timedelta(seconds=seconds)).isoformat()}


def source(api, folder, **options):
    return RestSource(RestSource.Options(**{"base_url": api.url, **LINKS, **options}), folder)


def project(api, folder, **options):
    return IngestProject(folder / "p", type="rest", base_url=api.url, **{**LINKS, **options})


def rows_of(one, unit=None):
    pieces = list(one.read(unit or one.snapshot()[0]))
    return [r for p in pieces if not isinstance(p, DeadLetter) for r in p.to_pylist()]


PAGINATORS = {
    "json_link": {"next_url_path": "next"},
    "page_number": {"page": 1, "page_param": "number", "total_path": None, "base_page": 1},
    "offset": {"limit": 100, "total_path": "total"},
}


@pytest.mark.parametrize("paginator", list(PAGINATORS))
def test_all_pages_are_read_in_order_whichever_way_they_are_turned(api, tmp_path, paginator):
    api.rows = [row(i) for i in range(250)]
    options = {"paginator": paginator, "paginator_options": PAGINATORS[paginator]}
    rows = rows_of(source(api, tmp_path, **options))
    assert [r["id"] for r in rows] == list(range(250))
    assert rows[249][ORIGIN] == "rows:250"


def test_a_header_may_link_to_the_next_page(tmp_path):
    def answer(handler, query):
        page = int(query.get("page", 1))
        link = [("Link", f'<{api.url}/rows?page={page + 1}>; rel="next"')] if page < 3 else []
        send_json(handler, [{"id": page}], headers=link)

    with serving(answer=answer) as api:
        one = source(
            api, tmp_path, data_selector="$", paginator="header_link", paginator_options={}
        )
        assert [r["id"] for r in rows_of(one)] == [1, 2, 3]


@pytest.mark.slow
def test_a_run_asks_for_what_is_newer_and_brings_each_row_once(api, tmp_path):
    api.rows = [row(i, seconds=i // 50) for i in range(150)]
    run = project(api, tmp_path, **CURSOR)
    assert run.ingest()[1]["rows"] == {"out": 150, "total": 150}
    assert "since" not in api.requests[0][1]
    asked = len(api.requests)
    assert run.ingest()[0] == "hit"
    assert api.requests[asked:] == [("/rows", {"since": "2026-03-01T12:00:02Z"})]
    api.rows += [row(i, seconds=5) for i in range(150, 160)]
    assert run.ingest()[1]["rows"] == {"out": 10, "total": 160}
    assert run.column("id") == list(range(160))
    assert len(set(run.column("_row_id"))) == 160
    assert run.column(ORIGIN)[0] == "rows:at=2026-03-01T12:00:00+00:00,id=0"


@pytest.mark.slow
def test_a_fetched_page_is_not_fetched_again_to_be_read(api, tmp_path):
    api.rows = [row(i) for i in range(250)]
    project(api, tmp_path, **CURSOR).ingest()
    assert len(api.requests) == 3


def test_what_is_pinned_is_read_though_the_api_has_changed_meanwhile(api, tmp_path):
    for options in ({}, CURSOR):
        api.rows = [row(1), row(2)]
        one = source(api, tmp_path, **options)
        (unit,) = one.snapshot()
        api.rows = [{**row(1), "text": "changed"}]
        assert [r["text"] for r in rows_of(one, unit)] == ["t1", "t2"]


def test_on_another_host_a_window_is_asked_for_again_and_gives_the_same_ids(api, tmp_path):
    api.rows = [row(1), row(2, seconds=1), row(3, seconds=2)]
    one = source(api, tmp_path / "here", **CURSOR)
    (unit,) = one.snapshot()
    api.rows.append(row(4, seconds=3))
    there = source(api, tmp_path / "there", **CURSOR)
    assert rows_of(there, unit) == rows_of(one, unit)


def test_on_another_host_a_whole_is_asked_for_again_and_must_be_the_same(api, tmp_path):
    api.rows = [row(1)]
    (unit,) = source(api, tmp_path / "here").snapshot()
    assert [r["id"] for r in rows_of(source(api, tmp_path / "there"), unit)] == [1]
    api.rows = [row(2)]
    with pytest.raises(SourceError, match="rows has changed since it was pinned"):
        rows_of(source(api, tmp_path / "elsewhere"), unit)


@pytest.mark.slow
def test_without_a_cursor_the_same_rows_are_a_hit_and_other_rows_come_whole(api, tmp_path):
    api.rows = [row(1), row(2)]
    run = project(api, tmp_path)
    run.ingest()
    assert run.ingest()[0] == "hit"
    api.rows.append(row(3))
    assert run.ingest()[1]["rows"] == {"out": 3, "total": 5}


def test_ties_and_rows_that_shift_to_the_next_page_come_once(api, tmp_path):
    api.rows = [row(i) for i in range(100)] + [row(99)] + [row(i) for i in range(100, 120)]
    run = project(api, tmp_path, **CURSOR)
    run.ingest()
    assert run.column("id") == list(range(120))


def test_a_time_counts_only_once_it_is_settled(api, tmp_path):
    now = datetime.now(UTC)
    times = [now - timedelta(hours=2), now - timedelta(minutes=5)]
    api.rows = [{"id": i, "at": at.isoformat()} for i, at in enumerate(times)]
    one = source(api, tmp_path, **{**CURSOR, "settle_s": 3600})
    assert [r["id"] for r in rows_of(one)] == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type_", "values", "asked"),
    [("integer", [5, 7], "5"), ("date", ["2026-03-01", "2026-03-02"], "2026-03-01")],
)
def test_a_cursor_may_be_a_number_or_a_date(api, tmp_path, type_, values, asked):
    run = project(api, tmp_path, **CURSOR, cursor_type=type_)
    api.rows = [{"id": 1, "at": values[0]}]
    run.ingest()
    api.rows += [{"id": 2, "at": values[0]}, {"id": 3, "at": values[1]}]
    run.ingest()
    assert api.requests[-1][1]["since"] == asked
    # The second with the first value came too late, and no position can tell it from the first.
    assert run.column("id") == [1, 3]


def test_an_api_without_rows_is_no_news_along_a_cursor_and_an_error_without(api, tmp_path):
    assert source(api, tmp_path, **CURSOR).snapshot() == ()
    with pytest.raises(SourceError, match="nothing at rows: 0 rows"):
        source(api, tmp_path).snapshot()


def test_too_many_requests_and_server_errors_are_waited_out(api, tmp_path):
    api.rows = [row(i) for i in range(150)]
    api.faults = [
        http_api.status(429, ("Retry-After", "1")),
        http_api.status(503),
        None,
        http_api.status(500),
        http_api.dies_in_mid_page,
        http_api.half_json,
    ]
    rows = rows_of(source(api, tmp_path))
    assert [r["id"] for r in rows] == list(range(150))
    assert len(api.requests) == 7


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (http_api.status(429), "answered HTTP 429 in 3 attempts, saying 'oops'"),
        (http_api.status(500), "answered HTTP 500 in 3 attempts"),
        (http_api.half_json, "sent half a page, 3 times"),
        (http_api.dies_in_mid_page, "did not answer in 3 attempts: IncompleteRead"),
        (http_api.hangs_up, "did not answer in 3 attempts"),
    ],
    ids=["429", "500", "half JSON", "dies in mid-page", "hangs up"],
)
def test_what_does_not_pass_is_told_after_a_bounded_number_of_attempts(
    api, tmp_path, fault, message
):
    api.faults = [fault] * 9
    run = project(api, tmp_path, attempts=3)
    with pytest.raises(SourceUnavailable, match=message):
        run.ingest()
    assert len(api.requests) == 3
    assert list((run.folder / ".penstock" / "pages").iterdir()) == []


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_refusal_is_not_tried_again(api, tmp_path, code):
    api.faults = [http_api.status(code)] * 9
    with pytest.raises(SourceError, match=f"answered HTTP {code}, saying 'oops'") as error:
        source(api, tmp_path).snapshot()
    assert error.value.hint
    assert not error.value.transient
    assert len(api.requests) == 1


def test_a_page_for_people_in_place_of_json_is_shown(api, tmp_path):
    api.faults = [http_api.html]
    with pytest.raises(SourceError, match=r"sent text/html in place of JSON: '<html><h1>Please"):
        source(api, tmp_path).snapshot()


@pytest.mark.slow
def test_a_failure_on_a_later_page_pins_nothing(api, tmp_path):
    api.rows = [row(i) for i in range(250)]
    api.faults = [None, None, http_api.html]
    run = project(api, tmp_path, **CURSOR)
    with pytest.raises(SourceError, match="in place of JSON"):
        run.ingest()
    run.ingest()
    assert run.column("id") == list(range(250))


def test_the_same_page_for_ever_is_noticed_on_its_second_time(tmp_path):
    def answer(handler, _):
        send_json(handler, {"data": [{"id": 1}], "next": f"{api.url}/rows"})

    with serving(answer=answer) as api:
        with pytest.raises(SourceError, match="page 2 is page 1") as error:
            source(api, tmp_path).snapshot()
        assert "paginator" in error.value.hint
        assert len(api.requests) == 2


def test_other_pages_for_ever_end_at_the_limit(tmp_path):
    def answer(handler, _):
        send_json(handler, {"data": [{"id": len(api.requests)}], "next": f"{api.url}/rows"})

    with (
        serving(answer=answer) as api,
        pytest.raises(SourceError, match="more than 5 pages"),
    ):
        source(api, tmp_path, max_pages=5).snapshot()


@pytest.mark.parametrize("options", [{}, CURSOR], ids=["whole", "cursor"])
def test_the_same_empty_page_for_ever_is_noticed_on_its_second_time(tmp_path, options):
    def answer(handler, _):
        send_json(handler, {"data": [], "next": f"{api.url}/rows"})

    with serving(answer=answer) as api:
        with pytest.raises(SourceError, match="page 2 is page 1") as error:
            source(api, tmp_path, **options).snapshot()
        assert "paginator" in error.value.hint
        assert len(api.requests) == 2


def test_an_empty_page_at_the_end_that_leads_to_itself_is_noticed(tmp_path):
    def answer(handler, query):
        rows = [] if "page" in query else [row(1)]
        send_json(handler, {"data": rows, "next": f"{api.url}/rows?page=2"})

    with serving(answer=answer) as api:
        with pytest.raises(SourceError, match="page 3 is page 2"):
            source(api, tmp_path).snapshot()
        assert len(api.requests) == 3


@pytest.mark.parametrize(
    "paging",
    [
        {},
        {
            "paginator": "cursor",
            "paginator_options": {"cursor_path": "next", "cursor_param": "page"},
        },
    ],
    ids=["links", "cursor"],
)
def test_different_pages_without_rows_are_no_loop(tmp_path, paging):
    def answer(handler, query):
        page = int(query.get("page", 1))
        following = page + 1 if paging else f"{api.url}/rows?page={page + 1}"
        rows = [row(page)] if page in (1, 5) else []
        send_json(handler, {"data": rows, "next": following if page < 5 else None})

    with serving(answer=answer) as api:
        assert [r["id"] for r in rows_of(source(api, tmp_path, **paging))] == [1, 5]


@pytest.mark.parametrize(
    ("body", "selector", "message"),
    [
        ({"items": []}, "data", "without 'data'; it holds: items"),
        ({"error": "quota"}, "data", "without 'data'; it holds: error"),
        ({"data": {"id": 1}}, "data", "has dict at 'data'; expected a list"),
        ("text", "data", "without 'data'; it holds: str"),
    ],
)
def test_an_answer_without_rows_where_they_should_be_is_not_an_empty_page(
    tmp_path, body, selector, message
):
    with (
        serving(answer=lambda handler, _: send_json(handler, body)) as api,
        pytest.raises(SourceError, match=message) as error,
    ):
        source(api, tmp_path, data_selector=selector, **CURSOR).snapshot()
    assert "data_selector" in error.value.hint


def test_a_page_counter_that_the_api_does_not_send_is_told(tmp_path):
    with (
        serving(answer=lambda handler, _: send_json(handler, {"data": [{"id": 1}]})) as api,
        pytest.raises(SourceError, match="does not say which page comes next"),
    ):
        source(api, tmp_path, paginator="offset", paginator_options={"limit": 1}).snapshot()


@pytest.mark.slow
@pytest.mark.parametrize("null_cursor", ["refuse", "leave_out"])
def test_along_a_cursor_too_rows_that_are_no_objects_become_dead_letters(tmp_path, null_cursor):
    body = {"data": [row(1), "text", None, [2], row(3)], "next": None}
    with serving(answer=lambda handler, _: send_json(handler, body)) as api:
        run = project(api, tmp_path, **CURSOR, null_cursor=null_cursor)
        _, summary = run.ingest()
        assert run.ingest()[0] == "hit"
    assert summary["dead_letters"] == 3
    assert run.column("id") == [1, 3]
    assert {(one["excerpt"], one["reason"]) for one in run.dead_letters()} == {
        ('"text"', "expected an object, got str"),
        ("null", "expected an object, got NoneType"),
        ("[2]", "expected an object, got list"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, CURSOR], ids=["whole", "cursor"])
def test_what_is_no_number_makes_a_dead_letter_of_its_row_as_in_json_lines(tmp_path, options):
    rows = [row(1), row(2) | {"x": math.nan}, row(3) | {"y": [{"z": -math.inf}]}, row(4)]
    body = {"data": rows, "next": None}
    with serving(answer=lambda handler, _: send_json(handler, body)) as api:
        run = project(api, tmp_path, **options)
        run.ingest()
        rows.append(row(5, seconds=1))
        run.ingest()
    expected = [1, 4, 1, 4, 5] if not options else [1, 4, 5]
    assert run.column("id") == expected
    reasons = [one["reason"] for one in run.dead_letters()]
    assert reasons[:2] == ["NaN is not JSON", "-Infinity is not JSON"]
    assert len(reasons) == (4 if not options else 2)


def test_rows_that_are_no_objects_become_dead_letters(tmp_path):
    body = {"data": [{"id": 1}, "text", {"id": "two"}, {"id": 3}], "next": None}
    with serving(answer=lambda handler, _: send_json(handler, body)) as api:
        run = project(api, tmp_path)
        _, summary = run.ingest()
    assert summary["dead_letters"] == 2
    assert run.column("id") == [1, 3]
    assert {letter["excerpt"] for letter in run.dead_letters()} == {'"text"', '{"id": "two"}'}


@pytest.mark.slow
def test_rows_that_read_alike_to_a_person_are_told_apart(api, tmp_path):
    ids = [1, "1", "\ud800", "\ud801", 2, 3, 4, 5, "True", True]
    api.rows = [{**row(0), "id": i} for i in ids]
    run = project(api, tmp_path, **CURSOR)
    _, summary = run.ingest()
    assert run.column("id") == [1, 2, 3, 4, 5]
    assert summary["dead_letters"] == 5
    origins = [letter["_origin"] for letter in run.dead_letters()]
    assert len({*origins, *run.column(ORIGIN)}) == len(ids)


@pytest.mark.slow
def test_no_keys_of_one_row_stop_an_api(api, tmp_path):
    poison = [{"_row_id": 1}, {"\ud800": 1}, {"o": {"\ud800": 1}}]
    api.rows = [row(1), *({**row(2 + i), **more} for i, more in enumerate(poison)), row(9)]
    for name, options in (("along", CURSOR), ("whole", {})):
        run = project(api, tmp_path / name, **options)
        _, summary = run.ingest()
        assert (run.column("id"), summary["dead_letters"]) == ([1, 9], 3)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"id": 2}, "row 2 has no 'at'"),
        ({"id": 2, "at": None}, "row 2 has no 'at'"),
        ({"id": 2, "at": "soon"}, "cursor 'at' holds 'soon'. Valid as time"),
        ({"id": 2, "at": 17}, "cursor 'at' holds '17'"),
        ({"id": 2, "at": "1869-01-01T00:00:00Z"}, "from 1970"),
        ({"at": "2026-03-01T12:00:00Z"}, "no 'id', which is its key"),
    ],
)
def test_a_row_that_stands_nowhere_is_refused_and_shown(tmp_path, odd, message):
    body = {"data": [row(1), odd], "next": None}
    with (
        serving(answer=lambda handler, _: send_json(handler, body)) as running,
        pytest.raises(SourceError, match=message),
    ):
        source(running, tmp_path, **CURSOR).snapshot()


def test_rows_without_a_cursor_can_be_left_out(tmp_path):
    body = {"data": [row(1), {"id": 2}], "next": None}
    with serving(answer=lambda handler, _: send_json(handler, body)) as api:
        one = source(api, tmp_path, **CURSOR, null_cursor="leave_out")
        assert [r["id"] for r in rows_of(one)] == [1]


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        ({"type": "bearer"}, "Authorization", "Bearer s3cret"),
        ({"type": "api_key", "name": "X-Key"}, "X-Key", "s3cret"),
        ({"type": "basic", "username": "ann"}, "Authorization", "Basic YW5uOnMzY3JldA=="),
    ],
)
def test_who_asks_is_shown_to_the_api_and_to_nobody_else(
    api, tmp_path, monkeypatch, auth, header, value
):
    monkeypatch.setenv("API_SECRET", "s3cret")
    api.rows = [row(1)]
    run = project(api, tmp_path, auth={**auth, "secret": "${API_SECRET}"})
    run.ingest()
    assert api.headers[0][header] == value
    api.faults = [http_api.status(401, body=b"who is s3cret?")]
    with pytest.raises(SourceError, match=r"HTTP 401, saying 'who is \*\*\*\?'"):
        run.ingest()
    assert "s3cret" not in run.text()


def test_a_key_in_the_address_shows_in_no_message(api, tmp_path):
    auth = {"type": "api_key", "name": "key", "location": "query", "secret": "s3cret"}
    api.faults = [http_api.status(404)]
    with pytest.raises(SourceError, match="HTTP 404") as error:
        source(api, tmp_path, auth=auth).snapshot()
    assert api.requests[0][1]["key"] == "s3cret"
    assert "s3cret" not in error.value.message


def test_a_next_page_on_another_host_is_not_shown_our_secret(tmp_path):
    with serving() as stranger:
        body = {"data": [{"id": 1}], "next": f"{stranger.url}/rows"}
        with (
            serving(answer=lambda handler, _: send_json(handler, body)) as api,
            pytest.raises(SourceError, match="next page at another host"),
        ):
            source(api, tmp_path, auth={"type": "bearer", "secret": "s3cret"}).snapshot()
        assert stranger.requests == []


def test_an_api_that_has_moved_is_told_and_not_followed(api, tmp_path):
    with serving() as stranger:
        api.faults = [http_api.status(302, ("Location", f"{stranger.url}/rows?x=1"))]
        with pytest.raises(SourceError, match="HTTP 302: it has moved to http"):
            source(api, tmp_path).snapshot()
        assert stranger.requests == []


def test_a_server_that_is_down_is_told(tmp_path):
    with serving() as api:
        pass
    with pytest.raises(SourceUnavailable, match="did not answer in 2 attempts: ConnectionRefused"):
        source(api, tmp_path, attempts=2).snapshot()


def test_options_that_make_no_sense_are_refused(api, tmp_path):
    with pytest.raises(ValidationError, match="`cursor` needs a `key`"):
        RestSource.Options(base_url="http://a", cursor="at")
    with pytest.raises(ValidationError, match="base_url"):
        RestSource.Options(base_url="http://user:password@host")
    with pytest.raises(SourceError, match=r"takes no 'next_path'. Did you mean 'next_url_path'"):
        source(api, tmp_path, paginator_options={"next_path": "x"}).snapshot()


def test_pages_that_nobody_came_for_are_swept(api, tmp_path):
    api.rows = [row(1)]
    source(api, tmp_path).snapshot()
    (old,) = (tmp_path / ".penstock" / "pages").iterdir()
    os.utime(old, (1, 1))
    api.rows = [row(2)]
    source(api, tmp_path).snapshot()
    (new,) = (tmp_path / ".penstock" / "pages").iterdir()
    assert new != old
    assert json.loads(new.read_text())["id"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "calls"),
    [
        ("penstock.sources.rest:RestSource.position", 150),
        ("penstock.stages.ingest:_Spool.add", 1),
        ("penstock.tables:Table.append_once", 1),
        ("penstock.tables:Table.append_once", 2),
        ("penstock.ledger:Ledger.record", 1),
    ],
)
def test_killed_anywhere_and_run_again_nothing_is_lost_or_doubled(api, tmp_path, function, calls):
    """Two runs, the second of which is killed while the API gets more rows and a bad day."""
    api.rows = [row(i, seconds=i // 10) for i in range(100)]
    run = project(api, tmp_path, **CURSOR)
    run.ingest()
    api.rows += [row(i, seconds=i // 10) for i in range(100, 345)]
    assert run.killed_ingest(function, calls)
    api.rows += [row(i, seconds=i // 10 + 1) for i in range(345, 400)]
    api.faults = [http_api.dies_in_mid_page, http_api.status(503)]
    _, summary = run.ingest()
    assert sorted(run.column("id")) == list(range(400))
    assert len(set(run.column("_row_id"))) == summary["rows"]["total"] == 400
