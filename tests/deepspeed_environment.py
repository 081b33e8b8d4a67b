"""DeepSpeed's environment, made when a test first asks for it."""

import fcntl
import functools
import os
import subprocess
from pathlib import Path

HOME = Path(__file__).parent.parent
ENVIRONMENT = HOME / ".venvs" / "deepspeed"
PYTHON = ENVIRONMENT / "bin" / "python"
# Where DeepSpeed keeps what it compiles; its own place is below HOME, which tests move.
EXTENSIONS = ENVIRONMENT / "extensions"
_COMPILE = "from deepspeed.ops.op_builder import ShareMemCommBuilder as B; B().load()"


@functools.cache
def why_not() -> str:
    """Make the environment; returns what went wrong, or nothing."""
    said = _failure([str(HOME / "scripts" / "make-env.sh"), "deepspeed"])
    if not said:
        os.environ["TORCH_EXTENSIONS_DIR"] = str(EXTENSIONS)
        said = _compiled()
    return said


def _compiled() -> str:
    """Compile what DeepSpeed would compile in the first test, which takes minutes, once."""
    with (ENVIRONMENT / "extensions.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if list(EXTENSIONS.glob("*/*.so")):
            return ""
        EXTENSIONS.mkdir(exist_ok=True)
        # Of somebody who was killed meanwhile; it would be waited for without end.
        for left in EXTENSIONS.glob("*/lock"):
            left.unlink()
        return _failure([str(PYTHON), "-c", _COMPILE])


def _failure(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]
