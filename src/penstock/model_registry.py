"""Registered models as MLflow keeps them: versions, their files, aliases.

The only place that asks MLflow about models. Its answers are data from somewhere
else: paths are checked before a file is written, nothing is ever unpickled, and
an address with a password in it is never repeated.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from penstock.artifacts import store_errors
from penstock.errors import MissingExtra, PenstockError, RegistryError, StoreError
from penstock.registry import did_you_mean, require

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DIGEST_TAG = "penstock.digest"
# What MLflow calls a registered version: models:/NAME/VERSION.
URI_SCHEME = "models:/"

_SHOWN = 20  # of the names a message lists
_LONGEST = 300  # characters of another's message
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Its own seven retries take four minutes to say that nobody is there.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}


@dataclass(frozen=True)
class RegisteredVersion:
    """One version as the registry has it.

    Attributes:
        name: The model's; ``catalog.schema.model`` in a Unity Catalog.
        version: Its number.
        run_id: The MLflow run behind it, or nothing.
        source: Where its files lie.
        digest: SHA-256 over the manifest of its files, if Penstock registered it.
    """

    name: str
    version: int
    run_id: str
    source: str
    digest: str | None


class ModelRegistry:
    """A connection to MLflow's model registry.

    Args:
        uri: MLflow's tracking URI. With ``databricks``, models are those of the
            Unity Catalog; ``MLFLOW_REGISTRY_URI`` names another registry.
        make_database: Called before MLflow is first asked.

    Raises:
        MissingExtra: mlflow is not installed.
    """

    def __init__(self, uri: str, make_database: Callable[[], object] | None = None) -> None:
        if find_spec("mlflow") is None:
            raise MissingExtra("mlflow", "registry")
        self.uri = uri
        self._make_database = make_database
        self._registry_uri = os.environ.get("MLFLOW_REGISTRY_URI") or _registry_of(uri)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's own, made when it is first asked: importing it takes seconds.

        Raises:
            RegistryError: The URI is not one.
        """
        prepare_mlflow()
        from mlflow.tracking import MlflowClient

        if self._make_database is not None:
            self._make_database()
        with mlflow_errors(self.uri):
            return MlflowClient(tracking_uri=self.uri, registry_uri=self._registry_uri)

    @property
    def identity(self) -> str:
        """Which registry this is, without credentials; a file keeps its identity when it moves."""
        scheme, _, place = self._registry_uri.partition("://")
        if scheme == "sqlite":
            return f"sqlite {Path(place).name}"
        return without_password(self._registry_uri)

    def version(self, name: str, version: int) -> RegisteredVersion:
        """One version.

        Raises:
            RegistryError: There is no such model or version; the message lists what
                there is. Or the registry cannot be asked.
        """
        with mlflow_errors(self.uri):
            try:
                found = self.client.get_model_version(name, str(version))
            except _mlflow_exception() as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise self._unknown(name, version) from None
        return RegisteredVersion(
            name, int(found.version), found.run_id or "", found.source or "",
            found.tags.get(DIGEST_TAG),
        )  # fmt: skip

    def alias(self, name: str, alias: str) -> int | None:
        """The version an alias points at; None without the alias or the model."""
        with mlflow_errors(self.uri):
            try:
                version = self.client.get_registered_model(name).aliases.get(alias)
            except _mlflow_exception() as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None
        return None if version is None else int(version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version."""
        with mlflow_errors(self.uri):
            self.client.set_registered_model_alias(name, alias, str(version))

    def files(self, version: RegisteredVersion) -> dict[str, int]:
        """Path -> size in bytes of every file of a version.

        Raises:
            RegistryError: There are none, or a path would leave the folder.
        """
        with _file_errors(version, self.uri):
            files = dict(_walk(self._artifacts(version), ""))
        if not files:
            raise RegistryError(
                f"{version.name} version {version.version} has no files.",
                "Was its upload cut short? Register it again.",
            )
        return files

    def fetch(self, version: RegisteredVersion, path: str, folder: Path) -> None:
        """Copy one of a version's files below ``folder``, under its own path.

        Raises:
            RegistryError: It cannot be read.
            StoreError: The disk is full, or ``folder`` is not writable.
        """
        target = folder / path
        with store_errors(folder), _file_errors(version, self.uri):
            target.parent.mkdir(parents=True, exist_ok=True)
            got = Path(self._artifacts(version).download_artifacts(path, str(folder)))
            if got.is_symlink() or got.resolve() != target.resolve():
                raise RegistryError(f"{path} of {version.name} is not a file of its own.")

    def _artifacts(self, version: RegisteredVersion) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self.client.get_model_version_download_uri(version.name, str(version.version))
        return get_artifact_repository(uri, tracking_uri=self.uri, registry_uri=self._registry_uri)

    def _unknown(self, name: str, version: int) -> RegistryError:
        found = self.client.search_model_versions(f"name = '{_quoted(name)}'")
        numbers = sorted(int(one.version) for one in found)
        if numbers:
            have = ", ".join(map(str, numbers[-_SHOWN:]))
            return RegistryError(
                f"There is no version {version} of model {name!r}. It has: {have}."
            )
        names = sorted(model.name for model in self.client.search_registered_models())
        if name in names:
            return RegistryError(f"Model {name!r} has no versions.", "Register one first.")
        known = did_you_mean(name, names[:_SHOWN]) if names else " It has no models."
        return RegistryError(f"There is no model {name!r} in this registry.{known}")


def version_uri(name: str, version: int) -> str:
    """What MLflow calls a registered version."""
    return f"{URI_SCHEME}{name}/{version}"


def prepare_mlflow() -> None:
    """Import MLflow so that it reports to nobody, keeps quiet and does not wait for ever.

    Raises:
        MissingExtra: mlflow is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    require("mlflow", "registry")
    for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def without_password(text: str) -> str:
    """A text whose addresses name no user and no password."""
    return re.sub(r"://[^/@\s]*@", "://", text)


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into ours, naming the server and what to do.

    Raises:
        RegistryError: Instead of MLflow's exceptions.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (_mlflow_exception(), SQLAlchemyError) as error:
        raise _refused(error, uri) from None  # its cause may hold the address


def _refused(error: Exception, uri: str) -> PenstockError:
    said = _said(error)
    where = without_password(uri)
    if "No space left" in str(error):
        return StoreError("The disk is full.", "Free some space and try again.")
    if re.search(r"\b(401|403)\b|UNAUTHENTICATED|PERMISSION_DENIED", said):
        return RegistryError(
            f"MLflow at {where} refused the credentials: {said}",
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
        )
    if "Max retries exceeded" in said or "Connection" in said or "timed out" in said:
        return RegistryError(
            f"MLflow at {where} does not answer.",
            "Check MLFLOW_TRACKING_URI, --tracking or `tracking` in the recipe, and that it is up.",
            transient=True,
        )
    return RegistryError(
        f"MLflow refused: {said}", f"It is the server at {where}; check that this is the one."
    )


def _said(error: Exception) -> str:
    """What an error says, on one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return without_password(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


@contextmanager
def _file_errors(version: RegisteredVersion, uri: str) -> Iterator[None]:
    """What reading files may raise: MLflow's errors, and those of the store behind it."""
    try:
        with mlflow_errors(uri):
            yield
    except (PenstockError, OSError):
        raise
    except Exception as error:  # S3's, Azure's, Google's: each has its own
        raise RegistryError(
            f"The files of {version.name} version {version.version} cannot be read: "
            f"{type(error).__name__}: {_said(error)}",
            "Check the credentials of the store behind MLflow, and that the files are there.",
        ) from None


def _walk(artifacts: Any, folder: str) -> Iterator[tuple[str, int]]:
    for found in artifacts.list_artifacts(folder or None):
        path = PurePosixPath(found.path)
        if path.is_absolute() or ".." in path.parts or not path.is_relative_to(folder):
            raise RegistryError(f"The registry lists {found.path!r}, which leaves the folder.")
        if found.is_dir:
            yield from _walk(artifacts, str(path))
        else:
            yield str(path), int(found.file_size or 0)


def _registry_of(uri: str) -> str:
    """The registry that belongs to a tracking server: Databricks' is the Unity Catalog."""
    scheme, separator, profile = uri.partition("://")
    return f"databricks-uc{separator}{profile}" if scheme == "databricks" else uri


def _quoted(name: str) -> str:
    return name.replace("'", "")


def _mlflow_exception() -> Any:
    from mlflow.exceptions import MlflowException

    return MlflowException
