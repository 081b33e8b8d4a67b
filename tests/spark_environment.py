"""The Python environment in which Spark lives, made when a test needs it."""

import shutil
import subprocess
from pathlib import Path

HOME = Path(__file__).parents[1]
PYTHON = HOME / ".venvs" / "spark" / "bin" / "python"


def missing():
    """Make the environment if need be; returns why it cannot be, or nothing."""
    if shutil.which("java") is None:
        return "there is no Java: scripts/install-services.sh installs it"
    made = subprocess.run(
        [HOME / "scripts" / "make-env.sh", "spark"], capture_output=True, text=True
    )
    return made.stderr.strip() if made.returncode else ""
