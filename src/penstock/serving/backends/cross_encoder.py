"""A model that reads a query and a document at once and says how well they fit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penstock.encoder import Vectors, loading, readable, refuse_pickled_weights
from penstock.errors import ServingError
from penstock.registry import require

Pair = tuple[str, str]


class CrossEncoder:
    """One model; on a GPU where there is one, in full precision.

    Args:
        model: A ``sentence_transformers.CrossEncoder`` with one output.

    Attributes:
        limit: It reads so many tokens of a pair.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._counter = copy.deepcopy(model.tokenizer)
        self._sigmoid = require("torch", "serve").nn.Sigmoid()
        self.limit: int = model.max_seq_length

    @classmethod
    def load(cls, folder: Path) -> CrossEncoder:
        """Load a folder, and score a pair.

        Raises:
            RecipeError: It holds no such model, or one whose weights are pickled.
            ServingError: Its model sorts pairs into classes.
            MissingExtra: sentence-transformers is not installed.
        """
        refuse_pickled_weights(folder)
        library = require("sentence_transformers", "serve")
        with readable(folder):
            model = library.CrossEncoder(str(folder), **loading())
        if model.num_labels != 1:
            raise ServingError(
                f"{folder} sorts pairs into {model.num_labels} classes; a reranker gives one score."
            )
        encoder = cls(model)
        with readable(folder):
            encoder.num_tokens([("warm", "warm")])
            encoder.score([("warm", "warm")])
        return encoder

    def num_tokens(self, pairs: Sequence[Pair]) -> list[int]:
        """What the model would read of each pair; from any thread."""
        queries, documents = (list(texts) for texts in zip(*pairs, strict=True))
        encoded = self._counter(queries, documents, truncation=False, padding=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def score(self, pairs: Sequence[Pair], batch_size: int = 32) -> Vectors:
        """How well each pair fits, in [0, 1], shape (len(pairs),), float32.

        Some models leave their output as it is (``ms-marco-MiniLM`` gives -11 to 11);
        the sigmoid keeps the order and is what the others were trained with.
        """
        scores = self._model.predict(
            list(pairs),
            batch_size=batch_size,
            activation_fn=self._sigmoid,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(scores, dtype=np.float32)
