"""What the loop costs beside the training and evaluation it is there for.

``python -m benchmarks.loop [PAIRS]`` plays the demo's first act in turn with a
process that makes the same TRL and lm-eval calls on the same examples and does
nothing else, and times an unchanged re-run. Prints medians as Markdown.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

from benchmarks.machine import machine

_PLAIN = """
import sys
from pathlib import Path
from penstock.pipeline import open_pipeline
from penstock.stages import evaluate, train
from penstock.stages.base import Job, Pinned, Silent
from penstock.launchers.loop import train as train_loop

pipeline = open_pipeline("recipe.yaml")
prepared = pipeline.ledger.latest(pipeline.recipe.name, "prepare")
out = Path(sys.argv[1])
pinned = Pinned()
job = Job(
    recipe=pipeline.recipe, store=pipeline.store, ledger=pipeline.ledger, run_id="", stage="train",
    fingerprint="0" * 64, settings=train.STAGE.settings(pipeline.recipe, pinned),
    inputs={"prepare": prepared}, pinned=pinned, folder=out, progress=Silent(),
)
(out / "scratch").mkdir()
train._select(job, out / "scratch")
train_loop(train._training(job, out / "scratch", True), lambda *_: None)
evaluate._evaluate(pipeline.recipe, out / "model", list(pipeline.recipe.evaluate.tasks), Silent())
"""


def prepare_project(folder: Path) -> None:
    """The demo's project, with its evaluation tasks and its first data prepared."""
    example = resources.files("penstock") / "examples" / "python_docs"
    with resources.as_file(example) as source:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "tasks.py", "tasks"], cwd=folder, check=True)
    penstock(folder, "run", "--until", "prepare")


def penstock(folder: Path, *arguments: str) -> dict[str, object]:
    """Run the command line; returns its JSON with wall seconds and peak MB."""
    command = [sys.executable, "-m", "penstock.cli", *arguments, "--json"]
    return timed(command, folder)


def timed(command: list[str], folder: Path) -> dict[str, object]:
    """Run a process; returns what it printed as JSON, wall seconds and peak MB."""
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)
    output = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - began
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    printed = json.loads(output) if output.strip().startswith(b"{") else {}
    return {**printed, "wall_s": wall_s, "peak_mb": usage.ru_maxrss / 1024}


def main(pairs: int) -> None:
    """Run both in turn, and print the table."""
    loop_s, plain_s, rerun_s, peak_mb, stages = [], [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        prepare_project(folder)
        kept = Path(name) / "kept"
        shutil.copytree(folder / ".penstock", kept)
        for i in range(pairs):
            shutil.rmtree(folder / ".penstock")
            found = penstock(folder, "run")
            loop_s.append(float(str(found["wall_s"])))
            peak_mb.append(float(str(found["peak_mb"])))
            stages.append({s["stage"]: s["duration_s"] for s in found["stages"]})  # type: ignore[attr-defined]
            rerun_s.append(float(str(penstock(folder, "run")["wall_s"])))
            shutil.rmtree(folder / ".penstock")
            shutil.copytree(kept, folder / ".penstock")
            out = Path(name) / f"plain-{i}"
            out.mkdir()
            plain = timed([sys.executable, "-c", _PLAIN, str(out)], folder)
            plain_s.append(float(str(plain["wall_s"])))
    report(loop_s, plain_s, rerun_s, peak_mb, stages)


def report(
    loop_s: list[float],
    plain_s: list[float],
    rerun_s: list[float],
    peak_mb: list[float],
    stages: list[dict[str, float]],
) -> None:
    """Print medians."""
    median = statistics.median
    print(f"{machine()}; medians of {len(loop_s)} interleaved pairs\n")
    print("| | seconds |\n|---|---|")
    for stage in stages[0]:
        print(f"| {stage} | {median(one[stage] for one in stages):.1f} |")
    print(f"| **the whole loop, process start included** | {median(loop_s):.1f} |")
    print(f"| the same training and evaluation alone | {median(plain_s):.1f} |")
    ratio = median(a / b for a, b in zip(loop_s, plain_s, strict=True))
    print(f"| ratio | {ratio:.2f} |")
    print(f"| unchanged re-run | {median(rerun_s):.2f} |")
    print(f"\nPeak resident memory of the loop: {median(peak_mb):,.0f} MB.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
