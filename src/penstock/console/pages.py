"""Pages that only show."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from penstock import rollout_page, rollout_report, run_page
from penstock.console import charts
from penstock.console.alarm_views import AlarmDesk
from penstock.console.desk import Desk
from penstock.console.forms import number_of, word_of
from penstock.console.live import live
from penstock.console.render import render
from penstock.errors import PenstockError
from penstock.gates import summary_rows, to_html
from penstock.monitoring import drift_page, drift_report, judge_report

_NUM_ROWS = 50
_NUM_LINES = 20
_NUM_WINDOWS = 30
# Of live traffic; the first is what is shown unasked. 0 never loads the page again.
_MINUTES = (5, 1, 15)
_EVERY_S = (5, 0)
# The report brings its style with it; whatever else were in it could do nothing.
_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; sandbox; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def loop(desk: Desk, request: Request) -> Response:
    """Each stage's state by the last run, and what serves."""
    done = word_of(request)
    last = desk.last_run()
    num_alarms = AlarmDesk(desk.pipeline).num_open()
    return render(
        desk,
        request,
        "loop.html",
        last=last,
        serving=desk.serving(),
        num_alarms=num_alarms,
        done=done,
    )


def plan(desk: Desk, request: Request) -> Response:
    """What a run would do now; asks every source what there is."""
    return render(desk, request, "plan.html", planned=desk.pipeline.plan())


def runs(desk: Desk, request: Request) -> Response:
    """Runs, newest first."""
    return render(desk, request, "runs.html", runs=desk.runs())


def run(desk: Desk, request: Request) -> Response:
    """Why each stage of a run ran, was a hit or was skipped; and what became of the rows."""
    found = desk.run(request.path_params["run_id"])
    artifacts = {one.name: one.artifact for one in found.stages if one.artifact is not None}
    chart = charts.rows(artifacts)
    return render(desk, request, "run.html", run=found, artifacts=artifacts, chart=chart)


def run_report(desk: Desk, request: Request) -> Response:
    """The run's whole report with its plots, to be kept or sent."""
    record = desk.run(request.path_params["run_id"]).record
    return _report(run_page.page_of(desk.pipeline, record.id))


def gates(desk: Desk, request: Request) -> Response:
    """Decisions, newest first."""
    return render(desk, request, "gates.html", gates=desk.gates())


def gate(desk: Desk, request: Request) -> Response:
    """One decision in numbers."""
    artifact, decision = desk.gate(request.path_params["fingerprint"])
    rows = summary_rows(decision)
    return render(desk, request, "gate.html", artifact=artifact, decision=decision, rows=rows)


def gate_report(desk: Desk, request: Request) -> Response:
    """The whole report with its plots, made from the decision again."""
    _, decision = desk.gate(request.path_params["fingerprint"])
    return _report(to_html(decision))


def _report(html: str) -> Response:
    return HTMLResponse(html, headers={"content-security-policy": _REPORT_POLICY})


def versions(desk: Desk, request: Request) -> Response:
    """Registered versions, what serves, and every move of the pointer."""
    done = word_of(request)
    models, serving = desk.models(), desk.serving()
    return render(desk, request, "versions.html", models=models, serving=serving, done=done)


def version(desk: Desk, request: Request) -> Response:
    """One version, back to its source rows."""
    model = desk.model(request.path_params["version"])
    lineage = desk.lineage(model)
    return render(
        desk, request, "version.html", model=model, lineage=lineage, serving=desk.serving()
    )


def rollouts(desk: Desk, request: Request) -> Response:
    """Versions that were or are on trial."""
    serving = desk.serving()
    found = desk.rollouts.of(serving.name, serving.alias)
    return render(desk, request, "rollouts.html", rollouts=found)


def rollout(desk: Desk, request: Request) -> Response:
    """One trial: counts, differences, evidence and the log of decisions."""
    now = rollout_report.status(desk.rollouts, desk.rollout(request.path_params["rollout_id"]))
    return render(
        desk,
        request,
        "rollout.html",
        now=now,
        headline=rollout_report.headline(now),
        headers=rollout_report.SIGNAL_HEADERS,
        signals=list(rollout_report.signal_rows(now)),
        counts=rollout_report.counts(now).splitlines(),
        done=word_of(request),
    )


def judge(desk: Desk, request: Request) -> Response:
    """What the recipe's judge makes of each version, and whether it counts."""
    found, headers = desk.drift.judged(), judge_report.HEADERS
    return render(desk, request, "judge.html", found=found, headers=headers)


def whole_rollout(desk: Desk, request: Request) -> Response:
    """The trial's whole report with its plots, to be kept or sent."""
    rollout = desk.rollout(request.path_params["rollout_id"])
    return _report(rollout_page.to_html(rollout_report.status(desk.rollouts, rollout)))


def alarms(desk: Desk, request: Request) -> Response:
    """What was seen, what it led to, and what the loop makes of it now."""
    desk_, asked = AlarmDesk(desk.pipeline), request.query_params
    loop = desk_.loop()
    before = number_of(asked, "before") if "before" in asked else None
    past = desk_.newest(is_open=False, limit=_NUM_ROWS, before=before)
    return render(
        desk,
        request,
        "alarms.html",
        loop=loop,
        num_open=desk_.num_open(),
        open=desk_.views(desk_.newest(is_open=True, limit=_NUM_ROWS), loop),
        past=desk_.views(past, loop),
        older=past[-1].number if len(past) == _NUM_ROWS else None,
        log=desk_.log.newest(_NUM_LINES),
        done=word_of(request),
    )


def alarm(desk: Desk, request: Request) -> Response:
    """One alarm: what it rests on, who said what of it, what it led to."""
    desk_ = AlarmDesk(desk.pipeline)
    record = desk_.find(request.path_params["number"])
    (view,) = desk_.views([record], desk_.loop())
    events = desk_.alarms.events(record.number)
    done = word_of(request)
    return render(desk, request, "alarm.html", view=view, events=events, done=done)


def drift(desk: Desk, request: Request) -> Response:
    """Whether traffic is still what it was, and what people make of each version."""
    scores, min_score = desk.drift.scores()
    has_judge = desk.pipeline.recipe.observe.judge is not None
    shown: dict[str, Any] = {"scores": scores, "min_score": min_score, "has_judge": has_judge}
    shown["found"] = None
    try:
        found = desk.drift.drift(request.query_params.get("window"))
    except PenstockError as error:
        if "window" in request.query_params:
            raise
        return render(desk, request, "drift.html", trouble=error, **shown)
    chosen = found.chosen
    return render(
        desk,
        request,
        "drift.html",
        **{**shown, "found": found},
        headline=drift_report.headline(found.status),
        stream=_ours(drift_page.stream_section(found.status)),
        window=[_ours(one) for one in drift_page.window_sections(chosen)] if chosen else [],
        headers=drift_report.HEADERS,
        rows=list(reversed(drift_report.rows(found.status)[-_NUM_WINDOWS:])),
    )


def topics(desk: Desk, request: Request) -> Response:
    """Which topics moved in a window, with examples."""
    chosen, found = desk.drift.topics(request.query_params.get("window"))
    sections = [_ours(drift_page.topics_section(one)) for one in found]
    return render(desk, request, "topics.html", window=chosen, sections=sections)


def traffic(desk: Desk, request: Request) -> Response:
    """Requests, errors, times and tokens of the last minutes; the page loads itself again."""
    asked = request.query_params
    minutes = _chosen(asked.get("minutes", ""), _MINUTES)
    every_s = _chosen(asked.get("every", ""), _EVERY_S)
    log = desk.pipeline.recipe.serve.log
    now = None if log is None else live(desk.traffic, datetime.now(UTC), 60.0 * minutes)
    chart = charts.requests(now.buckets) if now else ""
    return render(
        desk,
        request,
        "traffic.html",
        log=log,
        live=now,
        chart=chart,
        minutes=minutes,
        every_s=every_s,
        spans=_MINUTES,
        serving=desk.serving(),
    )


def _chosen(said: str, choices: tuple[int, ...]) -> int:
    """What an address asks for, if that is one of the choices; else the first."""
    return next((one for one in choices if str(one) == said), choices[0])


def quarantine(desk: Desk, request: Request) -> Response:
    """Rows that validation held back, by rule; and some of them."""
    asked = request.query_params
    source, rule = asked.get("source", ""), asked.get("rule", "")
    held = desk.held()
    rows = desk.held_rows(source, rule, _NUM_ROWS) if held else []
    done = word_of(request)
    chosen = {"source": source, "rule": rule}
    return render(desk, request, "quarantine.html", held=held, rows=rows, chosen=chosen, done=done)


def feedback(desk: Desk, request: Request) -> Response:
    """What people said of answers, newest first, and which of it the next run takes."""
    return render(desk, request, "feedback.html", review=desk.review())


def cost(desk: Desk, request: Request) -> Response:
    """What models, keys and days came to."""
    costs = desk.costs()
    return render(desk, request, "cost.html", costs=costs, chart=charts.days(costs["day"][-31:]))


def _ours(html: str) -> Markup:
    """HTML that escapes what came from outside, as it was made."""
    return Markup(html)  # noqa: S704


PAGES: dict[str, Callable[[Desk, Request], Response]] = {
    "/": loop,
    "/plan": plan,
    "/runs": runs,
    "/runs/{run_id}": run,
    "/runs/{run_id}/report": run_report,
    "/gates": gates,
    "/gates/{fingerprint}": gate,
    "/gates/{fingerprint}/report": gate_report,
    "/versions": versions,
    "/versions/{version:int}": version,
    "/rollouts": rollouts,
    "/rollouts/{rollout_id}": rollout,
    "/rollouts/{rollout_id}/report": whole_rollout,
    "/alarms": alarms,
    "/alarms/{number:int}": alarm,
    "/drift": drift,
    "/drift/topics": topics,
    "/drift/judge": judge,
    "/traffic": traffic,
    "/quarantine": quarantine,
    "/feedback": feedback,
    "/cost": cost,
}
