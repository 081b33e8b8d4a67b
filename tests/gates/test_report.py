import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_evaluations import answers, evaluation, metric, scores

from penstock.gates import (
    Decision,
    GatePolicy,
    comparison_rows,
    decide,
    floor_rows,
    gate_results,
    summary_rows,
    to_html,
    to_markdown,
)

OUTPUT = Path(__file__).parent / "lm_eval_output"
HOSTILE = '<script>alert("1")</script>|[x](javascript:1)'


@pytest.fixture(scope="module")
def decision() -> Decision:
    policy = GatePolicy(min={"sums": 0.9}, max={"prose/bits_per_byte": 2.0})
    return gate_results(OUTPUT / "candidate", OUTPUT / "baseline", policy)


@pytest.fixture(scope="module")
def hostile() -> Decision:
    candidate, baseline = answers(200, 100, better=5, worse=5)
    sides = [
        replace(evaluation({HOSTILE: side}), label=HOSTILE, model=f"m{HOSTILE}")
        for side in (candidate, baseline)
    ]
    policy = GatePolicy(min={HOSTILE: 0.9}, max_regression={HOSTILE: 0.01})
    return decide(sides[0], sides[1], policy)


class Tags(HTMLParser):
    """Collects tags, and checks that each is closed where it should be."""

    VOID = ("meta", "br", "line", "rect", "circle")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(decision: Decision) -> None:
    page = to_html(decision)
    tags = Tags(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.seen)
    assert not {"src", "href", "srcset"} & {name for name, _ in tags.attributes}
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_shows_verdict_reasons_and_every_plot(decision: Decision) -> None:
    page = to_html(decision)
    assert "BLOCK" in page
    assert all(f'aria-label="{title}' in page for title in ("Difference", "Items", "Floors"))
    assert page.count('aria-label="Difference') == 2  # points, and per cent
    assert "below its floor of 0.9" in page


def test_nothing_that_a_task_is_called_becomes_markup(hostile: Decision) -> None:
    tags = Tags(to_html(hostile, title=HOSTILE))
    assert "script" not in tags.seen
    assert "<script" not in to_html(hostile, title=HOSTILE)


def test_markdown_tables_keep_their_shape_whatever_a_task_is_called(hostile: Decision) -> None:
    text = to_markdown(hostile)
    unescaped = re.compile(r"(?<!\\)\|")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(unescaped.findall(line)) for line in tables}
    assert widths == {len(comparison_rows(hostile)[0]) + 1, len(floor_rows(hostile)[0]) + 1}
    assert "<script" not in text.replace("\\<", "")


def test_markdown_says_what_was_decided_and_on_what(decision: Decision) -> None:
    text = to_markdown(decision)
    assert text.startswith("## Gate: BLOCK\n")
    assert "- sums/acc is 0.6667, below its floor of 0.9." in text
    assert decision.candidate.digest[:12] in text


def test_rows_have_the_shape_of_their_header(decision: Decision) -> None:
    for rows in (summary_rows(decision), floor_rows(decision), comparison_rows(decision)):
        assert {len(row) for row in rows} == {len(rows[0])}
    names = [row[0] for row in comparison_rows(decision)]
    assert names[:3] == ["metric", "macro mean over 3 tasks", "sums/acc"]
    assert [row[-1] for row in floor_rows(decision)] == ["shown", "fails", "holds"]


def test_the_summary_holds_floors_and_comparisons(decision: Decision) -> None:
    _, floor, ceiling, macro, *_ = summary_rows(decision)
    assert floor == ("sums/acc", "0.6667", "–", "–", "≥ 0.9000", "fails")
    assert ceiling[-2:] == ("≤ 2.0000", "holds")
    assert macro[-2:] == ("> -0.0200", "undecided")


def test_a_first_model_is_reported_without_comparisons() -> None:
    candidate = evaluation({"arc": answers(100, 60)[0]})
    decision = decide(candidate, None, GatePolicy(min={"arc": 0.5}))
    Tags(to_html(decision))
    assert [row[-1] for row in summary_rows(decision)] == ["shown", "holds"]
    assert len(comparison_rows(decision)) == 1
    assert "Against the baseline" not in to_markdown(decision)


def test_unknown_limits_and_a_baseline_of_zero_are_reported() -> None:
    zero = metric(scores([0.0] * 10), "loss", higher_is_better=False)
    one = metric(scores([0.5] * 10), "loss", higher_is_better=False)
    decision = decide(evaluation({"t": one}), evaluation({"t": zero}), GatePolicy())
    Tags(to_html(decision))
    assert summary_rows(decision)[1][3] == "–"
