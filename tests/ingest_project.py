"""A folder with a recipe, ingested by the real pipeline; also by a process that is killed."""

import json
import os
import signal
import subprocess
import sys

import yaml

from penstock.pipeline import open_pipeline
from penstock.stages.ingest import DEAD_LETTERS, raw_tables

# Where a process that ingests dies: after so many calls of the function, with SIGKILL.
_DOOMED = """
import importlib, os, signal, sys
from penstock.pipeline import open_pipeline
path, module, owner, name, calls = sys.argv[1:]
target = getattr(importlib.import_module(module), owner)
real, left = getattr(target, name), int(calls)

def dies(*args, **kwargs):
    global left
    result = real(*args, **kwargs)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(target, name, dies)
open_pipeline(path).run(until="ingest")
"""


class IngestProject:
    """One source under the name ``rows``."""

    def __init__(self, folder, **source):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "recipe.yaml"
        self.write(**source)

    def write(self, **source):
        recipe = {
            "name": "demo",
            "sources": {"rows": source},
            "evaluate": {"tasks": ["which"]},
            "gate": {"min": {"which": 0.0}},
        }
        self.path.write_text(yaml.safe_dump(recipe, sort_keys=False))

    def ingest(self):
        pipeline = open_pipeline(self.path)
        try:
            report = pipeline.run(until="ingest")
            return report.stages[0].outcome, report.artifacts["ingest"].summary
        finally:
            pipeline.ledger.close()

    def killed_ingest(self, function, calls, env=None):
        """Ingest in a process that dies after ``calls`` of "module:Owner.name".

        Returns:
            Whether it died there; otherwise it came to its end.
        """
        module, _, dotted = function.partition(":")
        arguments = [str(self.path), module, *dotted.split("."), str(calls)]
        done = subprocess.run(
            [sys.executable, "-c", _DOOMED, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **(env or {})},
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode == -signal.SIGKILL

    def table(self, name="rows"):
        pipeline = open_pipeline(self.path)
        pipeline.ledger.close()
        path = DEAD_LETTERS if name == DEAD_LETTERS else raw_tables(pipeline.recipe)[name]
        return pipeline.store.table("demo", path)

    def rows(self, name="rows"):
        return [row for batch in self.table(name).scan() for row in batch.to_pylist()]

    def dead_letters(self):
        return self.rows(DEAD_LETTERS)

    def column(self, name):
        return [row[name] for row in self.rows()]

    def text(self):
        """Everything that is written below the folder and can be read as text."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return "\n".join(path.read_bytes().decode("latin-1") for path in files)

    def dump(self):
        return json.dumps(self.rows(), default=str, indent=1)
