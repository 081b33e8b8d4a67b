"""``python -m benchmarks``: every benchmark, one after the other."""

from __future__ import annotations

import subprocess
import sys

COMMANDS = (
    ["-m", "benchmarks.demo"],
    ["-m", "benchmarks.loop"],
    ["-m", "benchmarks.rows"],
    ["-m", "benchmarks.engines"],
    ["-m", "benchmarks.training"],
    ["-m", "benchmarks.kafka"],
    ["-m", "benchmarks.lineage"],
    ["-m", "benchmarks.generation"],
    ["-m", "benchmarks.gateway"],
    ["-m", "benchmarks.gateway_peers"],
    ["-m", "benchmarks.promotions"],
    ["benchmarks/traces.py"],
    ["benchmarks/embeddings.py"],
    ["benchmarks/gate_calibration.py"],
    ["benchmarks/rollout_calibration.py"],
    ["benchmarks/drift_calibration.py"],
    ["benchmarks/judge_calibration.py"],
    ["-m", "benchmarks.closed_loop", "--seeds", "20"],
    ["-m", "benchmarks.closed_loop", "--seeds", "20", "--null"],
    ["benchmarks/crash.py", "--points", "1000"],
)

for command in COMMANDS:
    print(f"\n## {' '.join(command)}\n", flush=True)
    subprocess.run([sys.executable, *command], check=True)
