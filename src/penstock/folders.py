"""Where a store's files are: a folder here, or a prefix of keys in an object store.

Both are asked the same few things. An object appears as a whole, when its
upload ends, and is never changed afterwards; that is all Penstock asks of an
object store, beside "create, unless it is there", on which Delta's log rests.

Credentials, region and endpoint come from the environment under the names that
every tool of that cloud reads (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` ...).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from penstock.errors import StoreError
from penstock.registry import require

SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
# A store that is gone is noticed in seconds; a hiccup is bridged.
_CONNECT_TIMEOUT_S, _TIMEOUT_S = 5, 60
_RETRIES, _RETRY_TIMEOUT_S = 4, 60
_CHUNK_BYTES = 8 << 20
_COLOURS = re.compile(r"\x1b\[\d+m")


class Folder(Protocol):
    """Files by names; a name may have parts, as in ``_delta_log/0.json``."""

    @property
    def name(self) -> str:
        """The last part of where it is."""
        ...

    @property
    def url(self) -> str:
        """Where it is, for Delta and for people."""
        ...

    @property
    def options(self) -> Mapping[str, str]:
        """What Delta must be told to get there."""
        ...

    def __truediv__(self, name: str) -> Folder:
        """A folder inside."""
        ...

    def create(self) -> None:
        """Make it, where folders are made."""
        ...

    def folders(self) -> list[str]:
        """Names of the folders directly inside, sorted."""
        ...

    def files(self) -> dict[str, int]:
        """Sizes in bytes of all files below, by name."""
        ...

    def opened(self, name: str) -> Any:
        """What ``pyarrow.parquet`` can read a file from, here and there."""
        ...

    def written(self, name: str) -> Any:
        """A context that gives a path to write to; the file is there when it ends."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; one that is gone is no error."""
        ...


class LocalFolder:
    """A folder of this machine's file system, or of a volume mounted into it."""

    options: Mapping[str, str] = {}

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def url(self) -> str:
        """The path: Delta takes it as it is."""
        return str(self.path)

    def __truediv__(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name)

    def create(self) -> None:
        """Make the folder and those above it."""
        self.path.mkdir(parents=True, exist_ok=True)

    def folders(self) -> list[str]:
        """Names of the folders directly inside, sorted."""
        if not self.path.is_dir():
            return []
        return sorted(one.name for one in self.path.iterdir() if one.is_dir())

    def files(self) -> dict[str, int]:
        """Sizes in bytes of all files below, by name."""
        found = {}
        for path in self.path.rglob("*"):
            if path.is_file():
                found[path.relative_to(self.path).as_posix()] = path.stat().st_size
        return found

    def opened(self, name: str) -> Any:
        """The file's path."""
        return str(self.path / name)

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """The file's own path: what is half written is told apart by whoever reads."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; one that is gone is no error."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)


class ObjectFolder:
    """A prefix of keys in S3, Google Cloud Storage, Azure, or what speaks their protocols.

    Args:
        address: Such as ``s3://bucket/prefix``; a prefix is taken as it is written.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")

    @property
    def name(self) -> str:
        """The last part of the prefix."""
        return self._address.rpartition("/")[2]

    @property
    def url(self) -> str:
        """The address as a URL, in which a ``#`` of a key does not end it."""
        return quote(self._address, safe=":/@")

    @property
    def options(self) -> Mapping[str, str]:
        """Time limits, for Delta's client: the same as for ours."""
        return {
            "connect_timeout": f"{_CONNECT_TIMEOUT_S}s",
            "timeout": f"{_TIMEOUT_S}s",
            "max_retries": str(_RETRIES),
            "retry_timeout": f"{_RETRY_TIMEOUT_S}s",
            "allow_http": str(_is_plain_http()).lower(),
        }

    def __truediv__(self, name: str) -> ObjectFolder:
        return ObjectFolder(f"{self._address}/{name}")

    def create(self) -> None:
        """There is nothing to make: a prefix is there when something is under it."""

    def folders(self) -> list[str]:
        """Names of the prefixes directly inside, sorted."""
        with self._answered():
            found = self._objects.list_with_delimiter(self._store, None)
        return sorted(prefix.rpartition("/")[2] for prefix in found["common_prefixes"])

    def files(self) -> dict[str, int]:
        """Sizes in bytes of all objects below, by name."""
        with self._answered():
            pages = self._objects.list(self._store)
            return {one["path"]: one["size"] for page in pages for one in page}

    def opened(self, name: str) -> Any:
        """A file that reads what it is asked for, by ranges."""
        import pyarrow.fs
        from deltalake.fs import DeltaStorageHandler

        with self._answered():
            handler = DeltaStorageHandler(self.url, dict(self.options))
            return pyarrow.fs.PyFileSystem(handler).open_input_file(name)

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """A file beside, which is uploaded when the block ends well."""
        with tempfile.TemporaryDirectory(prefix="penstock-upload-") as scratch:
            path = Path(scratch) / "file"
            yield path
            self.put(name, path)

    def put(self, name: str, content: Path | bytes) -> None:
        """Upload one object; it is there as a whole, or not at all."""
        with self._answered():
            self._objects.put(self._store, name, content)

    def create_once(self, name: str, content: bytes) -> bool:
        """Upload one object unless it is there; returns whether it was not."""
        with self._answered():
            try:
                self._objects.put(self._store, name, content, mode="create")
            except require("obstore.exceptions", "s3").AlreadyExistsError:
                return False
            return True

    def get(self, name: str) -> Iterator[bytes]:
        """An object's bytes, in pieces.

        Raises:
            FileNotFoundError: There is no such object.
            StoreError: The store does not answer, or refuses.
        """
        with self._answered():
            for chunk in self._objects.get(self._store, name).stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(chunk)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; one that is gone is no error."""
        with self._answered():
            for name in names:
                self._objects.delete(self._store, name)

    @property
    def _objects(self) -> Any:
        return require("obstore", "s3")

    @cached_property
    def _store(self) -> Any:
        """The client: pools connections, so it is made once."""
        from datetime import timedelta

        return require("obstore.store", "s3").from_url(
            self.url,
            client_options={
                "allow_http": _is_plain_http(),
                "connect_timeout": f"{_CONNECT_TIMEOUT_S}s",
                "timeout": f"{_TIMEOUT_S}s",
            },
            retry_config={
                "max_retries": _RETRIES,
                "retry_timeout": timedelta(seconds=_RETRY_TIMEOUT_S),
            },
        )

    @contextmanager
    def _answered(self) -> Iterator[None]:
        with object_errors(self.url):
            yield


def _is_plain_http() -> bool:
    """Whether the endpoint is named without TLS, as one of your own may be."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    return any(os.environ.get(name, "").startswith("http://") for name in names)


@contextmanager
def object_errors(url: str) -> Iterator[None]:
    """Turn an object store's refusals into words.

    Raises:
        StoreError: Instead of what obstore and Delta's client raise.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        said = object_error(url, error)
        if said is None:
            raise
        raise said from error


def object_error(url: str, error: Exception) -> StoreError | None:
    """What to say of an error, if it is an object store's."""
    # The rest of the text is the client's own state, headers included.
    text = _COLOURS.sub("", str(error)).partition("Debug source")[0]
    kind = type(error).__name__
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return StoreError(f"{url}: there is no such bucket.", "Create it, or mend `store`.")
    ours = type(error).__module__.startswith("obstore")
    if not ours and re.search(r"Generic (S3|GCS|MicrosoftAzure) error", text) is None:
        return None
    refused = kind in ("PermissionDeniedError", "UnauthenticatedError") or re.search(
        r"\b40[13] |AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|credential", text
    )
    if refused:
        return StoreError(
            f"{url}: the object store refuses.",
            "Check the credentials in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or a role), and what they are allowed.",
        )
    why = " ".join(text.replace("↳", "").split())[:300]
    return StoreError(
        f"{url}: the object store does not answer as it should: {why}",
        "Check that it is up, and AWS_ENDPOINT_URL if it is your own. Run again: what was "
        "finished is kept.",
        transient=True,
    )
