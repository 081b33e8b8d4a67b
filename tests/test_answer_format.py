import threading

import pytest

from penstock.answer_format import AnswerFormat
from penstock.serve_section import ModelConfig


@pytest.mark.parametrize("answer", ['{"a": [1, null]}', " 1 ", '"ü"'])
def test_json_holds(answer):
    assert AnswerFormat("json").holds(answer)


@pytest.mark.parametrize("answer", ["", "{'a': 1}", '{"a": 1} and more', "NaN", "[" * 100_000])
def test_what_is_no_json_does_not_hold(answer):
    assert not AnswerFormat("json").holds(answer)


def test_an_expression_must_match_the_whole_answer():
    form = AnswerFormat("yes|no")
    assert form.holds("yes")
    assert not form.holds("yes.")
    assert not form.holds("no\n")
    assert AnswerFormat("(?s).*end").holds("two\nlines\nend")


def test_no_expression_takes_for_ever():
    assert not AnswerFormat("(a+)+b").holds("a" * 50_000)


def test_a_form_may_be_asked_by_many_threads():
    form, found = AnswerFormat("[0-9]+"), []
    threads = [threading.Thread(target=lambda: found.append(form.holds("42"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8


def test_a_wrong_expression_is_refused_with_the_recipe():
    assert ModelConfig(format="json").format == "json"
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        ModelConfig(format="(")
