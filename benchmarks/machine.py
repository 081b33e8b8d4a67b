"""What every benchmark says about where and when it ran."""

from __future__ import annotations

import datetime
import os
import platform


def machine() -> str:
    """One line: date, processor, cores, memory, Python."""
    cpu = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    with open("/proc/meminfo", encoding="utf-8") as file:
        total_gb = int(next(iter(file)).split()[1]) / 1e6
    return (
        f"{datetime.date.today().isoformat()}, {names[0] if names else cpu}, "
        f"{len(os.sched_getaffinity(0))} cores, {total_gb:.0f} GB, "
        f"Python {platform.python_version()}"
    )
