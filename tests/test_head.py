"""A classifier's last layer: fitted, saved, and read with suspicion."""

import json

import numpy as np
import pytest

from penstock.errors import RecipeError
from penstock.head import Head, fit, is_classifier

LABELS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def rows():
    """Vectors of unit length around three overlapping centres, and which one each is of."""
    dice = np.random.default_rng(5)
    targets = dice.integers(0, 3, 240)
    centres = dice.normal(size=(3, 8))
    vectors = centres[targets] + dice.normal(size=(240, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), targets


@pytest.mark.slow
@pytest.mark.parametrize("regularisation", [0.1, 10.0])
def test_a_fit_is_the_one_that_scikit_learn_finds(rows, regularisation):
    from sklearn.linear_model import LogisticRegression

    vectors, targets = rows
    head, losses = fit(vectors, targets, LABELS, regularisation)
    reference = LogisticRegression(C=1 / regularisation, tol=1e-8, max_iter=2000)
    reference.fit(vectors, targets)
    expected = reference.predict_proba(vectors)
    np.testing.assert_allclose(head.probabilities(vectors), expected, atol=1e-3)
    assert losses[0] == pytest.approx(np.log(3))
    assert losses[-1] < losses[0]


def test_the_same_rows_give_the_same_bytes(rows, tmp_path):
    for name in ("first", "second"):
        fit(*rows, LABELS, 0.1)[0].save(tmp_path / name)
    first, second = ((tmp_path / name / "head.safetensors") for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_probabilities_add_up_however_far_apart_logits_are():
    head = Head(("a", "b"), np.array([[1e6], [-1e6]], np.float32), np.zeros(2, np.float32))
    np.testing.assert_array_equal(head.probabilities(np.ones((1, 1), np.float32)), [[1, 0]])


def test_a_saved_head_is_read_back(rows, tmp_path):
    head, _ = fit(*rows, ["Straße", "b", "漢字"], 0.1)
    assert not is_classifier(tmp_path)
    head.save(tmp_path)
    assert is_classifier(tmp_path)
    read = Head.load(tmp_path)
    assert read.labels == ("Straße", "b", "漢字")
    np.testing.assert_array_equal(read.weight, head.weight)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "labels.json").write_text(json.dumps({"labels": ["a", "b"]})),
        lambda folder: (folder / "labels.json").write_text("[]"),
        lambda folder: (folder / "head.safetensors").write_bytes(b"cut"),
        lambda folder: (folder / "head.safetensors").unlink(),
    ],
    ids=["a label is gone", "no labels", "weights are cut", "no weights"],
)
def test_what_is_not_whole_is_refused(rows, tmp_path, spoil):
    fit(*rows, LABELS, 0.1)[0].save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(RecipeError, match=tmp_path.name):
        Head.load(tmp_path)
