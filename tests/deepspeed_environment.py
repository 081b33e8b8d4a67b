"""DeepSpeed's environment, made when a test first asks for it."""

import functools
import os
import subprocess
from pathlib import Path

HOME = Path(__file__).parent.parent
PYTHON = HOME / ".venvs" / "deepspeed" / "bin" / "python"


@functools.cache
def why_not() -> str:
    """Make the environment; returns what went wrong, or nothing."""
    # It compiles C++ for a minute when it first runs, below HOME, which tests move.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(HOME / ".venvs" / "deepspeed" / "extensions"))
    command = [str(HOME / "scripts" / "make-env.sh"), "deepspeed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]
