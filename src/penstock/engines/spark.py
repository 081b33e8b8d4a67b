"""Transforms on Spark: on all cores of this machine, or on any cluster.

Spark needs pandas below 3 and so an environment of its own. A small program that
runs there (``spark_worker.py``) holds the Spark session; parcels go to it and
come back as Parquet files in the scratch folder, which every worker must see.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from penstock.child_process import end_child
from penstock.engines.parcels import BUCKET_BYTES, PARCEL_BYTES, ParcelEngine, ParcelOptions, Work
from penstock.errors import EngineError
from penstock.sources.base import AnyOptions, Place

PYTHON = "PENSTOCK_SPARK_PYTHON"
# Where scripts/make-env.sh puts it, from the folder a run is started in.
_USUAL = Path(".venvs/spark/bin/python")
_PATIENCE_S = 30


class SparkOptions(ParcelOptions):
    """Where Spark is."""

    python: Annotated[str | None, Place()] = Field(
        None,
        description="The Python that has pyspark; null is `PENSTOCK_SPARK_PYTHON`, "
        "`.venvs/spark/bin/python` or the one that runs Penstock.",
    )
    master: Annotated[str | None, Place()] = Field(
        None, description="Spark's master URL; null is `SPARK_REMOTE`, or all cores here."
    )


class SparkEngine(ParcelEngine):
    """Runs transforms by Spark's ``mapInArrow`` and ``applyInArrow``.

    Args:
        scratch: A folder that every worker sees; the caller deletes it.
        python: The Python that has pyspark.
        session: One to share, which its maker closes; None starts one.
        master: Such as ``local[2]`` or ``spark://host:7077``; None is SPARK_REMOTE
            (Spark Connect, Databricks), or all cores of this machine.
        parcel_bytes: How many bytes of rows to transform at once.
        bucket_bytes: How many bytes of rows to group at once.

    Raises:
        EngineError: Spark cannot be started or reached.
    """

    Options: ClassVar[AnyOptions] = SparkOptions

    def __init__(
        self,
        scratch: Path,
        python: str | None = None,
        master: str | None = None,
        parcel_bytes: int = PARCEL_BYTES,
        bucket_bytes: int = BUCKET_BYTES,
        session: SparkSession | None = None,
    ) -> None:
        super().__init__(scratch, parcel_bytes, bucket_bytes)
        self._is_own = session is None
        self._session = session or SparkSession(python or spark_python(), master, self._scratch)

    def close(self) -> None:
        """End the Spark session, unless it is shared."""
        if self._is_own:
            self._session.close()

    def _work(self, files: Sequence[Path], first: Work, then: Work | None) -> Iterator[pa.Table]:
        made = self._path()
        self._session.run(files, first, then, made)
        try:
            for path in sorted(made.glob("*.parquet")):
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(batch_size=1):
                        yield pa.Table.from_batches([batch])
        finally:
            shutil.rmtree(made, ignore_errors=True)


class SparkSession:
    """A process in Spark's environment that runs one step after another.

    It reads requests from its standard input, so it ends when this process does,
    however that ends. It can serve several engines, if whoever made it closes it.
    """

    def __init__(self, python: str, master: str | None, scratch: Path) -> None:
        self._python = python
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)
        self._log = scratch / "spark.log"
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603  # what the recipe names
                    [python, "-P", "-m", "penstock.engines.spark_worker", str(scratch)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=_environment(master),
                    start_new_session=True,  # Ctrl-C is for us; it ends with our end of the pipe
                )
        except OSError as error:
            raise EngineError(
                f"prepare.engine: {python} cannot be started: {error.strerror}.",
                f"Make Spark's environment with scripts/make-env.sh spark, or set {PYTHON}.",
            ) from error
        self.close = weakref.finalize(self, end_child, self._process, _PATIENCE_S)
        self._answer()

    def run(self, files: Sequence[Path], first: Work, then: Work | None, made: Path) -> None:
        """Work on the parcels in ``files``; what comes of it is in the folder ``made``."""
        request = made.with_suffix(".work")
        request.write_bytes(pickle.dumps((first, then)))
        asked = {"files": [str(path) for path in files], "work": str(request), "made": str(made)}
        stdin: IO[str] | None = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(asked) + "\n")
            stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # reading the answer says what happened
        self._answer()
        request.unlink()

    def _answer(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        line = "" if stdout.closed else stdout.readline()
        said: Any = json.loads(line)["error"] if line else self._last_words()
        if said is not None:
            raise EngineError(
                f"Spark in {self._python} failed: {said}",
                "It needs pyspark, Java 17 or newer, and Penstock: scripts/make-env.sh spark. "
                "Check also prepare.engine.master and SPARK_REMOTE.",
            )

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else "it ended without a word"


def spark_python() -> str:
    """The Python that has pyspark, where a recipe names none."""
    named = os.environ.get(PYTHON)
    if named:
        return named
    return str(_USUAL.absolute()) if _USUAL.exists() else sys.executable


def _environment(master: str | None) -> dict[str, str]:
    environment = dict(os.environ)
    environment.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    if master is not None:
        environment.pop("SPARK_REMOTE", None)
        environment["PENSTOCK_SPARK_MASTER"] = master
    return environment
