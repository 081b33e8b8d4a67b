"""From a version or a name to a loaded backend; blocking, so it runs in threads."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.conversions import conversion
from penstock.encoder import PACKAGED, packaged_folder
from penstock.errors import RecipeError, ServingError
from penstock.hub import fetch_apart, require_commit
from penstock.registry import resolve
from penstock.serve_section import ModelConfig, Serve
from penstock.serving.backends.base import Backend, ModelFiles, Scaling
from penstock.serving.routes import Route, ServedVersion

# Nobody's run here made the model, and an answer must not look as if.
_EXTERNAL = "external"
_UNFIT = re.compile(r"[^A-Za-z0-9]+")

# transformers swaps its own module object while it is first imported; a second
# thread that imports it at that moment can keep the half-made one for good.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Loader:
    """Loads the versions of one configured model.

    Attributes:
        name: What clients call it.
        model: What the recipe says about it.
        serve: What it says about serving.
        cache_dir: Where backends keep what they derive from models.
        folder: The recipe's, where relative paths and plug-ins start.
    """

    name: str
    model: ModelConfig
    serve: Serve
    cache_dir: Path
    folder: Path | None = None

    def version(self, served: ServedVersion) -> Route:
        """Load a registered version.

        Raises:
            ServingError: It cannot be loaded.
            RegistryError: Its files are in MLflow alone, which cannot be asked.
            StoreError: They are not what was registered, or the disk is full.
        """
        if served.fetch is not None:
            served.fetch()
        label = f"{_label(self.name)}-v{served.version}-{served.digest[:8]}"
        return self._load(served, self._files(served.folder, served.digest, label))

    def source(self) -> Route:
        """Load a model that is not registered.

        Raises:
            ServingError: It cannot be loaded.
            RecipeError: Its name is not packaged and no folder is given.
        """
        source = self.model.source or self.name
        folder = None if self._backend_class.reads == "text" else self._source_folder(source)
        digest = _digest(folder) if folder else _digest_of_text(f"{source}\0{self.model.options}")
        served = ServedVersion(self.name, 1, 0, folder, digest, _EXTERNAL, _EXTERNAL)
        return self._load(served, self._files(folder, digest, _label(self.name)))

    @property
    def _backend_class(self) -> Any:
        name = self.model.backend_name
        found = resolve("backends", name, self.folder)
        if self.model.task not in found.capabilities:
            raise RecipeError(
                f"serve.models.{self.name}: the {name} backend cannot {self.model.task}; it can "
                f"{', '.join(sorted(found.capabilities))}."
            )
        return found

    def _files(self, folder: Path | None, digest: str, label: str) -> ModelFiles:
        model = self.model
        return ModelFiles(
            folder,
            conversion(self.cache_dir, digest),
            model.options,
            label,
            model.source,
            tuple(model.labels),
            model.task,
            Scaling(
                model.replicas.min,
                model.replicas.max,
                model.replicas.target_ongoing_requests,
                model.resources.num_cpus,
                model.resources.num_gpus,
            ),
            model.max_concurrency or self.serve.max_concurrency,
            self.folder or Path(),
            self.serve.request_timeout_s,
        )

    def _load(self, served: ServedVersion, files: ModelFiles) -> Route:
        backend: Backend = self._backend_class(files)
        with _ONE_AT_A_TIME:
            if not backend.elsewhere:
                backend.load()
            elif backend.reads == "tokens":
                _ = files.text  # all of transformers that this process needs for it
        if backend.elsewhere:
            backend.load()
        return Route(served, files, backend)

    def _source_folder(self, source: str) -> Path:
        if source in PACKAGED:
            return packaged_folder(source)
        folder = (self.folder or Path()) / source
        if folder.is_dir():
            return folder
        where = f"serve.models.{self.name}"
        if self.model.revision is None:
            raise RecipeError(
                f"{where}.source: {source!r} is no folder, and no installed package holds it; "
                f"packaged: {', '.join(PACKAGED)}.",
                f"Name a folder with the model's files; for a hub model set {where}.revision.",
            )
        commit = require_commit(source, self.model.revision, where, f"{where}.revision")
        return fetch_apart(source, commit, ServingError)


def _label(name: str) -> str:
    """A name that every server takes, and still unique."""
    plain = _UNFIT.sub("-", name).strip("-").lower()
    return plain if plain == name else f"{plain}-{_digest_of_text(name)[:6]}"


def _digest_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
