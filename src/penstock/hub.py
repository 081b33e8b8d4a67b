"""Models on the Hugging Face hub: pinned to a commit, and without anything that runs code.

As a program, ``python -m penstock.hub NAME COMMIT`` fetches one and says as a line of
JSON where it is, or what went wrong.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from penstock.errors import PenstockError, RecipeError
from penstock.registry import require

# Weights in other forms can run code when they are loaded.
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "*.txt")

_COMMIT = re.compile("[0-9a-f]{40}")
_OFFLINE = "HF_HUB_OFFLINE"
_was_offline = True


def go_offline() -> None:
    """Keep the Hugging Face libraries off the network; call it before they are imported.

    A served model is a local folder. Without this, loading one may ask the hub
    for files that the folder does not have, and wait for it.
    """
    global _was_offline
    if _OFFLINE not in os.environ:
        _was_offline = False
        os.environ[_OFFLINE] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def require_commit(name: str, revision: str | None, field: str, commit_field: str) -> str:
    """The commit of a hub model.

    Args:
        name: The model's.
        revision: What the recipe says.
        field: Where the recipe names the model.
        commit_field: Where its commit belongs.

    Raises:
        RecipeError: It is missing, or a branch or tag.
    """
    if revision is None:
        raise RecipeError(
            f"{field}: {name!r} is a hub model without a pinned commit.",
            f"Set {commit_field}: a name alone may mean another model tomorrow.",
        )
    if _COMMIT.fullmatch(revision) is None:
        raise RecipeError(
            f"{commit_field}: {revision!r} is not a commit: 40 hexadecimal digits.",
            "A branch or tag may mean another commit tomorrow; the hub lists a model's commits.",
        )
    return revision


def fetch(
    name: str, revision: str, failure: type[PenstockError], extra: str, what: str = "model"
) -> Path:
    """A hub model's folder at a commit, fetched if it is not in the cache.

    Left to ``from_pretrained``, a hub model without safetensors would be taken from
    a pull request that converts it: files that nobody pinned.

    Args:
        name: The model's.
        revision: The commit.
        failure: What is raised.
        extra: What to install for it.
        what: What messages call it.
    """
    hub = require("huggingface_hub", extra)
    try:
        folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=MODEL_FILES))
    # Not found, not allowed, not reached: each has a class of its own, of several libraries.
    except Exception as error:
        raise failure(
            f"The {what} {name!r} at {revision} cannot be fetched from the hub: "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
            "Check name and commit, and that the hub can be reached; or give a local folder.",
        ) from error
    if not list(folder.glob("*.safetensors")):
        raise failure(
            f"The {what} {name!r} at {revision} has no safetensors weights.",
            "Convert it, and give the folder; weights in other forms can run code when loaded.",
        )
    return folder


def fetch_apart(name: str, revision: str, failure: type[PenstockError]) -> Path:
    """As ``fetch``, from a process that may be offline itself.

    What ``go_offline`` says is read once, when the hub's library is imported, and holds
    for the whole process; so another one asks.
    """
    environment = dict(os.environ)
    if not _was_offline:
        environment.pop(_OFFLINE, None)
    done = subprocess.run(  # noqa: S603  # this module, and the recipe's own words
        [sys.executable, "-m", "penstock.hub", name, revision],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise failure(
            f"The model {name!r} cannot be fetched: {done.stderr.strip()[-500:]}"
        ) from None
    if "folder" not in said:
        raise failure(said["message"], said["hint"])
    return Path(said["folder"])


def _main(name: str, revision: str) -> None:
    try:
        said = {"folder": str(fetch(name, revision, PenstockError, "serve"))}
    except PenstockError as error:
        said = {"message": error.message, "hint": error.hint}
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
