from datetime import UTC, datetime

from penstock.opinions import Opinion, counted, judged

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def said(place, score=1.0, kind="thumb", rater="ann", tenant=None, text=None):
    return Opinion(kind, rater, score, text, None, tenant, NOW, (place, 0))


def test_a_raters_last_word_of_a_kind_holds():
    assert judged([said(1, 1.0), said(2, 0.0)]).score == 0.0
    assert judged([said(1, 0.0, rater="bob"), said(2, 1.0)]).score == 0.5
    assert judged([said(1, 1.0), said(2, 0.5, "score")]).score == 0.75


def test_the_last_correction_holds_and_is_no_score():
    first = said(1, None, "correction", text="one")
    second = said(2, None, "correction", rater="bob", text="two")
    assert judged([first, second]).correction == second
    assert judged([first, second]).score is None


def test_nothing_said_is_no_judgement():
    assert judged([]).score is None
    assert judged([]).correction is None


def test_only_the_tenant_that_asked_and_reviewers_count():
    own, other, reviewer = (said(i, tenant=name) for i, name in enumerate(("a", "b", "r")))
    assert counted([reviewer, other, own], "a") == [own]
    assert counted([reviewer, other, own], "a", ["r"]) == [own, reviewer]
    assert counted([own], None) == []
