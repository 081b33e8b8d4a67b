"""How long the demo's three acts take, and the most memory all its processes held at once.

``python -m benchmarks.demo`` plays them in a new folder, as ``make demo`` does.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine


def main() -> None:
    """Play the demo once and print its own last line."""
    with tempfile.TemporaryDirectory() as name:
        folder = str(Path(name) / "demo")
        command = [sys.executable, "-m", "penstock.cli", "demo", "--folder", folder]
        ports = ["--port", "0", "--metrics-port", "0"]
        done = subprocess.run([*command, *ports], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    total = re.search(r"Total .*", done.stdout)
    print(f"{machine()}\n\n{total.group() if total else done.stdout}")


if __name__ == "__main__":
    main()
