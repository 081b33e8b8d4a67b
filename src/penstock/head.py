"""The last layer of a classifier: from a text's vector to probabilities of labels.

A version that the pipeline trained is a folder with the layer's weights
(``head.safetensors``), what its rows mean (``labels.json``) and the encoder whose
vectors it reads (``encoder/``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.encoder import Vectors
from penstock.errors import RecipeError
from penstock.registry import require

WEIGHTS = "head.safetensors"
LABELS = "labels.json"
ENCODER = "encoder"

_MAX_STEPS = 500


@dataclass(frozen=True)
class Head:
    """A linear layer and its softmax.

    Attributes:
        labels: What it tells apart.
        weight: Shape (len(labels), dim), float32.
        bias: Shape (len(labels),), float32.
    """

    labels: tuple[str, ...]
    weight: Vectors
    bias: NDArray[np.float32]

    def probabilities(self, vectors: Vectors) -> Vectors:
        """Of each label, shape (len(vectors), len(labels)); rows add up to 1."""
        logits = vectors.astype(np.float64) @ self.weight.T + self.bias
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write the layer; the encoder's files are the caller's to copy."""
        safetensors = require("safetensors.numpy", "serve")
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.save_file({"weight": self.weight, "bias": self.bias}, folder / WEIGHTS)
        text = json.dumps({"labels": self.labels}, indent=1, ensure_ascii=False)
        (folder / LABELS).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Head:
        """Read what ``save`` wrote.

        Raises:
            RecipeError: It is not that, or not whole.
        """
        safetensors = require("safetensors.numpy", "serve")
        try:
            labels = json.loads((folder / LABELS).read_text(encoding="utf-8"))["labels"]
            tensors = safetensors.load_file(folder / WEIGHTS)
            head = cls(tuple(map(str, labels)), tensors["weight"], tensors["bias"])
        # safetensors has an error of its own.
        except Exception as error:
            raise RecipeError(f"{folder} holds no classifier that can be read: {error}") from error
        if head.weight.shape[:1] != head.bias.shape or len(head.labels) != len(head.bias):
            raise RecipeError(
                f"{folder}: {len(head.labels)} labels, and weights of shape {head.weight.shape}."
            )
        return head

    @classmethod
    def zero_shot(cls, labels: Sequence[str], vectors: Vectors, temperature: float) -> Head:
        """One that nobody trained: the more a text is like a label's words, the likelier.

        Args:
            labels: What texts may be about.
            vectors: Of the labels' words, of unit length, shape (len(labels), dim).
            temperature: Softmax is over cosine / temperature.
        """
        bias = np.zeros(len(labels), np.float32)
        return cls(tuple(labels), vectors / np.float32(temperature), bias)


def fit(
    vectors: Vectors, targets: NDArray[np.int64], labels: Sequence[str], regularisation: float
) -> tuple[Head, list[float]]:
    """Multinomial logistic regression, to its one minimum: nothing in it is random.

    Args:
        vectors: Shape (num_rows, dim).
        targets: Shape (num_rows,), each row's place in ``labels``.
        labels: At least two.
        regularisation: Half of it times the squared weights is added to the summed losses.

    Returns:
        The head, and the mean loss in nats before each step, regularisation included.
    """
    torch = require("torch", "train")
    rows = torch.from_numpy(vectors.astype(np.float64))
    wanted = torch.from_numpy(targets)
    weight = torch.zeros(len(labels), rows.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(labels), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_STEPS, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )
    losses: list[float] = []

    def loss() -> Any:
        optimizer.zero_grad()
        summed = torch.nn.functional.cross_entropy(rows @ weight.T + bias, wanted, reduction="sum")
        mean = (summed + regularisation / 2 * weight.square().sum()) / len(rows)
        mean.backward()
        losses.append(mean.item())
        return mean

    optimizer.step(loss)
    tensors = (tensor.detach().numpy().astype(np.float32) for tensor in (weight, bias))
    return Head(tuple(labels), *tensors), losses


def is_classifier(folder: Path) -> bool:
    """Whether the pipeline trained a classifier into this folder."""
    return (folder / LABELS).is_file()
