"""What a classifier's training and evaluation refuse."""

from collections import Counter

import pytest

from penstock.classifier_section import Classifier
from penstock.errors import EvaluationError, RecipeError, TrainingError
from penstock.recipe import Recipe
from penstock.stages.base import Base, Pinned
from penstock.stages.classify import MAX_LABELS, _known, encoder_base, measure
from penstock.stages.train import _settings

MINIMAL = {
    "name": "intent",
    "sources": {"rows": {"type": "files", "paths": ["rows.jsonl"]}},
    "train": {"classifier": {}},
    "evaluate": {"tasks": ["held_out"]},
    "gate": {"min": {"held_out": 0.5}},
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def recipe(**changes):
    return Recipe.model_validate(MINIMAL | changes)


@pytest.mark.parametrize(
    ("train", "held", "said"),
    [
        ({"a": 10}, {}, r"one label only, 'a', in 10 rows"),
        ({"a": 9, "b": 3}, {"a": 1, "c": 2}, r"no training row has: 'c' \(2\)"),
        (dict.fromkeys(map(str, range(10_000)), 2), {}, r"10,000 labels in 20,000 rows, such as"),
    ],
)
def test_labels_that_cannot_be_learned_are_named(train, held, said):
    with pytest.raises(TrainingError, match=said) as refused:
        _known(Counter(train), Counter(held), "label")
    assert refused.value.hint


def test_labels_are_sorted_and_as_many_as_are_allowed(tmp_path):
    names = [f"{number:04}" for number in range(MAX_LABELS)]
    assert _known(Counter(reversed(names)), Counter(names[:3]), "label") == names


def test_a_version_that_writes_is_no_baseline_of_a_classifier(tmp_path):
    class Job:
        recipe = recipe()

    with pytest.raises(EvaluationError, match="no classifier") as refused:
        measure(Job, Classifier(), tmp_path)
    assert "register.model" in refused.value.hint


@pytest.mark.slow
def test_an_encoder_is_packaged_a_folder_or_of_the_hub_at_a_commit(tmp_path):
    packaged = encoder_base(recipe(), Classifier())
    assert packaged.label == "all-MiniLM-L6-v2"
    assert packaged.revision is None
    hub = encoder_base(recipe(), Classifier(encoder="team/base", encoder_revision=COMMIT))
    assert (hub.location, hub.revision) == ("team/base", COMMIT)
    with pytest.raises(RecipeError, match="without a pinned commit") as refused:
        encoder_base(recipe(), Classifier(encoder="team/base"))
    assert "train.classifier.encoder_revision" in refused.value.hint
    with pytest.raises(RecipeError, match="holds no encoder"):
        encoder_base(recipe(), Classifier(encoder=str(tmp_path)))


def test_a_head_is_what_its_columns_its_encoder_and_its_regularisation_make_it():
    def settings(base="one", **classifier):
        made = recipe(train={"classifier": classifier, "batch_size": classifier.pop("batch", 8)})
        return _settings(made, Pinned(base=Base("label", base, "somewhere")))

    assert settings(batch=8) == settings(batch=16), "of train it reads nothing else"
    assert settings() != settings(base="two")
    assert settings() != settings(text="question")
    assert settings() != settings(regularisation=1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluate": {"tasks": ["held_out", "piqa"]}}, r"tasks must be \[held_out\]"),
        ({"evaluate": {"tasks": ["held_out"], "backend": "vllm"}}, "backend be left out"),
        ({"prepare": {"text_column": "text"}}, r"prepare\.text_column is not for classifiers"),
        ({"train": {"classifier": {}, "base": "folder"}}, r"train\.base is not for classifiers"),
        ({"train": {"classifier": {}, "lora": {}}}, r"train\.lora is not for classifiers"),
        ({"serve": {"models": {"intent": {}}}}, "say task: classify"),
        ({"train": {"classifier": {"regularisation": 0}}}, "greater than 0"),
    ],
)
def test_what_does_not_go_with_a_classifier_is_refused_with_the_recipe(changes, said):
    with pytest.raises(ValueError, match=said):
        recipe(**changes)


def test_a_classifier_is_served_as_one_when_no_models_are_named():
    assert recipe().served.models["intent"].task == "classify"
    assert recipe(train={}, evaluate={"tasks": ["x"]}).served.models["intent"].task == "generate"
