"""The demo's evaluation: word order and bits per byte of modules nobody trains on."""

import json
from pathlib import Path

import pytest
import yaml

from penstock import registry

RECIPE_FOLDER = Path(__file__).parents[2] / "src/penstock/examples/python_docs"
PythonDocs = registry.resolve("sources", "docs_source:PythonDocs", RECIPE_FOLDER)

import tasks  # noqa: E402  (the line above puts its folder on the path)
from docs_source import Doc, is_held_out, sentences  # noqa: E402

pytestmark = pytest.mark.slow  # reads the source of several libraries


# setuptools carries copies of standard library modules; the rest is prose.
LIBRARIES = ["setuptools", "sqlalchemy"]


def items(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def doc(response, module="json.decoder"):
    return Doc(module, f"{module}:1", 1, "What is it?", response)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    tasks.build_tasks(folder, LIBRARIES, seed=17)
    return folder


@pytest.fixture(scope="module")
def training_words():
    _, training = tasks.divided(LIBRARIES)
    return [tasks.normalised(doc.response) for doc in training]


def test_there_are_enough_items_for_a_paired_test(folder):
    assert len(items(folder, "word_order")) >= 600
    assert len(items(folder, "docs_bpb")) >= 150


def test_items_come_from_held_out_modules_only(folder):
    both = items(folder, "word_order") + items(folder, "docs_bpb")
    assert all(is_held_out(item["cluster"]) for item in both)
    assert len({item["cluster"] for item in both}) >= 20


def test_no_evaluation_sentence_occurs_in_a_training_row(folder, training_words):
    real = [item["choices"][item["answer"]] for item in items(folder, "word_order")]
    real += [s for item in items(folder, "docs_bpb") for s in sentences(item["text"])]
    wanted = {}
    for words in map(tasks.normalised, real):
        if len(words) >= 3:
            wanted.setdefault(words[:3], set()).add(words)
    for words in training_words:
        for i in range(len(words) - 2):
            for sentence in wanted.get(words[i : i + 3], ()):
                assert words[i : i + len(sentence)] != sentence


def test_no_eight_words_in_a_row_occur_in_a_training_row(folder, training_words):
    real = [item["choices"][item["answer"]] for item in items(folder, "word_order")]
    real += [s for item in items(folder, "docs_bpb") for s in sentences(item["text"])]
    grams = {w[i : i + 8] for w in map(tasks.normalised, real) for i in range(len(w) - 7)}
    for words in training_words:
        assert grams.isdisjoint({words[i : i + 8] for i in range(len(words) - 7)})


def test_no_sentence_is_asked_twice(folder):
    real = [tasks.normalised(i["choices"][i["answer"]]) for i in items(folder, "word_order")]
    assert len(set(real)) == len(real)


def test_choices_differ_in_one_swap_that_keeps_case_and_punctuation_in_place(folder):
    for item in items(folder, "word_order"):
        real = item["choices"][item["answer"]]
        assert len(set(item["choices"])) == 4
        for choice in item["choices"]:
            moved = [a for a, b in zip(choice.split(), real.split(), strict=True) if a != b]
            assert len(moved) == (0 if choice == real else 2)
            assert choice.split()[0] == real.split()[0]
            assert choice.split()[-1] == real.split()[-1]
            assert all(word.isalpha() for word in moved)


def test_answers_are_spread_over_the_four_places(folder):
    answers = [item["answer"] for item in items(folder, "word_order")]
    assert all(0.2 < answers.count(place) / len(answers) < 0.3 for place in range(4))


def test_the_same_seed_writes_the_same_files(folder, tmp_path):
    tasks.build_tasks(tmp_path, LIBRARIES, seed=17)
    for name in ("word_order.jsonl", "docs_bpb.jsonl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_another_seed_swaps_other_words_of_the_same_sentences():
    docs = [doc("Return the number of items that the queue holds now.")]
    one, two = (list(tasks.word_order(docs, set(), seed)) for seed in (1, 2))
    assert one[0]["choices"] != two[0]["choices"]
    assert one[0]["choices"][one[0]["answer"]] == two[0]["choices"][two[0]["answer"]]


def test_a_task_names_its_data_by_an_absolute_path(folder):
    config = yaml.safe_load((folder / "word_order.yaml").read_text())
    assert Path(config["dataset_kwargs"]["data_files"]["test"]) == folder / "word_order.jsonl"


@pytest.mark.parametrize(
    ("training", "leaks"),
    [
        ("Here we RETURN the number of items, that the queue...", True),
        ("return the number of items that the", False),
        ("Return the number of ITEMS that a queue holds now.", False),
    ],
)
def test_a_sentence_leaks_when_eight_of_its_words_follow_each_other(training, leaks):
    sentence = "Return the number of items that the queue holds now."
    assert bool(tasks.leaks([sentence], [training])) == leaks


def test_a_short_sentence_leaks_when_it_occurs_as_a_whole():
    assert tasks.leaks(["Close the open file."], ["Then close the open file and go."])
    assert not tasks.leaks(["Close the open file."], ["Close the file."])


def test_leaked_sentences_are_not_asked_and_their_documents_not_scored():
    text = "Return the number of items that the queue holds now. It counts those that wait too."
    leaked = {tasks.normalised(sentences(text)[0])}
    assert [len(item["choices"]) for item in tasks.word_order([doc(text)], set(), 1)] == [4, 4]
    assert len(list(tasks.word_order([doc(text)], leaked, 1))) == 1
    assert len(list(tasks.documents([doc(text)], set()))) == 1
    assert not list(tasks.documents([doc(text)], leaked))
