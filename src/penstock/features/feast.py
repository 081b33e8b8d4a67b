"""Feast: its offline store for training, its feature server for serving.

Feast needs pandas below 3 and so an environment of its own. Training rows are
joined by a small program that runs there (``feast_worker.py``); serving asks
the feature server (``feast serve``) over HTTP and imports nothing of Feast.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import polars as pl
import pyarrow as pa
from pydantic import Field

from penstock.artifacts import digest_of, file_digest
from penstock.child_process import end_child
from penstock.errors import FeatureError
from penstock.features.base import FeatureOptions
from penstock.prompt import Value
from penstock.registry import require
from penstock.section import Place

_WORKER = Path(__file__).with_name("feast_worker.py")
_ROW = "_row"
_PRESENT = "PRESENT"
_PATIENCE_S = 5
_DEFINITIONS = (".py", ".yaml", ".yml")
_DATA = ".parquet"


class FeastOptions(FeatureOptions):
    """Where Feast is, and which of its features enter a prompt."""

    repo: Annotated[str, Place()] = Field(
        "feature_repo", description="Folder of feature_store.yaml, relative to the recipe."
    )
    python: Annotated[str | None, Place()] = Field(
        None, description="The Python that has Feast, relative to the recipe; null is this one."
    )
    url: Annotated[str, Place()] = Field(
        "http://127.0.0.1:6566", description="The feature server, asked while serving."
    )
    timeout_s: Annotated[float, Place()] = Field(
        0.5, gt=0, description="For the feature server's answer."
    )


class FeastStore:
    """Features from Feast."""

    Options: ClassVar[type[FeatureOptions]] = FeastOptions

    def __init__(self, options: FeastOptions, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._worker: _Worker | None = None
        self._client: Any = None

    def version(self) -> str:
        """A digest of the repository: what its definitions say, and when its data was written.

        The registry and the online store change with every ``feast apply`` and
        ``materialize``, and say nothing about the past. Data outside of the folder is not seen.
        """
        repo = self._folder / self._options.repo
        if not repo.is_dir():
            raise FeatureError(
                f"features.repo: there is no folder {repo}.",
                "It is the folder of feature_store.yaml, relative to the recipe.",
            )
        return digest_of(
            {
                str(path.relative_to(repo)): _state(path)
                for path in sorted(repo.rglob("*"))
                if path.suffix in (*_DEFINITIONS, _DATA) and path.is_file()
            }
        )

    def at(self, rows: pa.Table, names: tuple[str, ...]) -> pa.Table:
        """Join ``names`` as of each row's time, by Feast's own point-in-time join."""
        if self._worker is None:
            python = self._options.python
            interpreter = sys.executable if python is None else str(self._folder / python)
            self._worker = _Worker(interpreter, self._folder / self._options.repo)
        # Feast shuffles rows, and leaves out those that come twice and some of
        # which it knows nothing; each question is asked once and the answers joined.
        asked = pl.DataFrame(rows)
        questions = asked.unique(maintain_order=True).with_row_index(_ROW)
        joined = pl.DataFrame(self._worker.join(questions.to_arrow(), names))
        answers = questions.join(joined, on=_ROW, how="left")
        found = asked.join(
            answers, on=asked.columns, how="left", nulls_equal=True, maintain_order="left"
        )
        return found.select(pl.col(_column(name)).alias(name) for name in names).to_arrow()

    def now(self, entity: Mapping[str, str], names: tuple[str, ...]) -> dict[str, Value | None]:
        """Ask the feature server about one entity."""
        httpx = require("httpx", "serve")
        if self._client is None:
            timeout_s = self._options.timeout_s
            # The server drops idle connections after two seconds, often in the
            # moment in which the next question is sent; so each has its own.
            limits = httpx.Limits(max_keepalive_connections=0)
            self._client = httpx.Client(
                base_url=self._options.url, timeout=timeout_s, limits=limits
            )
        body = {
            "features": list(names),
            "entities": {key: [value] for key, value in entity.items()},
            "full_feature_names": True,
        }
        try:
            answer = self._client.post("/get-online-features", json=body)
            answer.raise_for_status()
            return _values(answer.json(), names)
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise FeatureError(
                f"The feature server at {self._options.url} gave no features: "
                f"{type(error).__name__}: {error}",
                "Check that `feast serve` runs there and knows these features.",
            ) from error


def _state(path: Path) -> list[Any]:
    """What tells a file from its successor; data may be too much to be read each time."""
    if path.suffix == _DATA:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns]
    return [file_digest(path)]


def _column(name: str) -> str:
    """Feast's full name of a feature in its answers."""
    return name.replace(":", "__")


def _values(answer: Any, names: tuple[str, ...]) -> dict[str, Value | None]:
    """The feature server's answer about one entity, by VIEW:FEATURE."""
    columns = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
    out: dict[str, Value | None] = {}
    for name in names:
        column = columns[_column(name)]
        out[name] = column["values"][0] if column["statuses"][0] == _PRESENT else None
    return out


class _Worker:
    """A process in Feast's environment that joins one table after another.

    It reads requests from its standard input, so it ends when this process does,
    however that ends.
    """

    def __init__(self, python: str, repo: Path) -> None:
        self._python = python
        try:
            self._process = subprocess.Popen(  # noqa: S603  # what the recipe names
                [python, "-I", str(_WORKER), str(repo)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for us; it ends with our end of the pipe
            )
        except OSError as error:
            raise FeatureError(
                f"features.python: {python} cannot be started: {error.strerror}.",
                "Name the interpreter of the environment that has Feast.",
            ) from error
        weakref.finalize(self, end_child, self._process, _PATIENCE_S)
        self._answer()

    def join(self, rows: pa.Table, names: tuple[str, ...]) -> pa.Table:
        """Feast's historical features of ``rows``, with ``_row`` to find them again."""
        with tempfile.TemporaryDirectory() as scratch:
            given, made = Path(scratch) / "rows.arrow", Path(scratch) / "joined.arrow"
            with pa.ipc.new_file(str(given), rows.schema) as writer:
                writer.write_table(rows)
            request = {"rows": str(given), "features": list(names), "joined": str(made)}
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                pass  # reading the answer says what happened
            self._answer()
            return pa.ipc.open_file(made.read_bytes()).read_all()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        error = json.loads(line)["error"] if line else "it ended without a word"
        if error is not None:
            raise FeatureError(
                f"Feast in {self._python} failed: {error}",
                "Check features.names against `feast feature-views list`, and features.python.",
            )
