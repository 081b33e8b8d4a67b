"""This host: Python, packages and their versions, torch, disk and memory."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import penstock
from penstock.doctor.finding import Finding, fail, ok, warn
from penstock.recipe import Recipe
from penstock.stages.validate import expectations

PYTHON = SpecifierSet(">=3.11,<3.13")
_GIB = 2**30
# Below the first a run is likely to end with a full disk, below the second it will.
_LITTLE_DISK_BYTES, _NO_DISK_BYTES = 5 * _GIB, _GIB // 2
# What evaluating a model of a hundred million parameters takes, libraries included.
_LITTLE_MEMORY_BYTES = 2 * _GIB
_SHOWN = 6

# What a section's choice needs beside the core.
_BY_SOURCE = {
    "kafka": "kafka",
    "rest": "api",
    "fivetran": "fivetran",
    "huggingface": "huggingface",
}
_BY_TRANSFORM = {"language": "text", "near_dedupe": "text"}
_ORCHESTRATORS = ("airflow", "dagster", "prefect")
# What one command needs, and no recipe asks for.
_BY_COMMAND = {"grafana": "penstock export grafana"}


def python() -> Iterator[Finding]:
    """Whether this Python is one that Penstock runs on."""
    have = ".".join(map(str, sys.version_info[:3]))
    if have in PYTHON:
        yield ok("python", f"{have} at {sys.executable}")
    else:
        yield fail("python", f"{have} at {sys.executable}", f"Use a Python {PYTHON}.")


def extras(recipe: Recipe | None) -> dict[str, str]:
    """Extra -> what of the recipe needs it."""
    if recipe is None:
        return {}
    needed = {name: name for name in ("train", "evaluate", "serve")} | {"registry": "register"}
    for name, source in recipe.sources.items():
        if source.type in _BY_SOURCE:
            needed[_BY_SOURCE[source.type]] = f"sources.{name}"
    for step in recipe.prepare.transforms:
        if step.type in _BY_TRANSFORM:
            needed[_BY_TRANSFORM[step.type]] = f"prepare.transforms: {step.type}"
    if "ray" in (recipe.prepare.engine.type, recipe.train.launcher.type):
        needed["ray"] = "prepare.engine or train.launcher"
    if "://" in recipe.store:
        needed["s3"] = "store"
    if (recipe.ledger or "").startswith("postgresql"):
        needed["postgres"] = "ledger"
    if recipe.serve.traces is not None:
        needed["traces"] = "serve.traces"
    if recipe.serve.console:
        needed["console"] = "serve.console"
    if expectations(recipe.validate_):
        needed["contracts"] = "validate"
    return needed | _asked_orchestrators(recipe)


def _asked_orchestrators(recipe: Recipe) -> dict[str, str]:
    """Those that are asked from here to start runs: asking needs a library of HTTP."""
    said = recipe.orchestrate.model_fields_set
    asked = {name: f"orchestrate.{name}" for name in _ORCHESTRATORS if name in said}
    retrain = recipe.observe.retrain
    if retrain is not None and retrain.through != "here":
        asked[retrain.through] = "observe.retrain.through"
    return asked


def packages(recipe: Recipe | None) -> Iterator[Finding]:
    """Whether what the recipe needs is installed, in versions that Penstock takes."""
    demands = [Requirement(line) for line in requires("penstock") or ()]
    for extra, why in {"": "the core", **extras(recipe)}.items():
        wrong = _wrong(demands, extra)
        check = f"packages for {why}"
        if not wrong:
            yield ok(check, f"penstock[{extra}] is complete" if extra else "complete")
            continue
        target = f"penstock[{extra}]" if extra else "penstock"
        yield fail(check, "; ".join(wrong), f'Install with: pip install "{target}"')
    for extra, command in _BY_COMMAND.items() if recipe is not None else ():
        wrong = _wrong(demands, extra)
        todo = f'; for that command: pip install "penstock[{extra}]"' if wrong else ""
        found = "; ".join(wrong) or f"penstock[{extra}] is complete"
        yield ok(f"packages for {command}", found + todo)


def _wrong(demands: Sequence[Requirement], extra: str) -> list[str]:
    """What an extra asks for and does not find; empty is the core."""
    return [
        said
        for demand in demands
        if _is_meant(demand, extra) and (said := _unmet(demand)) is not None
    ]


def _is_meant(demand: Requirement, extra: str) -> bool:
    if demand.marker is None:
        return not extra
    return bool(extra) and demand.marker.evaluate({"extra": extra})


def _unmet(demand: Requirement) -> str | None:
    try:
        have = version(demand.name)
    except PackageNotFoundError:
        return f"{demand.name} is not installed"
    if demand.specifier.contains(have, prereleases=True):
        return None
    return f"{demand.name} is {have}, not {demand.specifier}"


def versions(constraints: Path | None) -> Iterator[Finding]:
    """Installed versions beside those that were tested together."""
    path = constraints or Path(penstock.__file__).parents[2] / "constraints.txt"
    if not path.is_file():
        yield ok("versions", "no file of tested versions here; name one with --constraints")
        return
    tested = _pins(path.read_text(encoding="utf-8"))
    other = [
        f"{name} {have} (tested: {pin})"
        for name, pin in tested.items()
        if (have := _installed(name)) is not None and have.partition("+")[0] != pin
    ]
    if not other:
        yield ok("versions", f"all that is installed is as in {path}")
        return
    more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
    todo = f"Install with: pip install --constraint {path} ..."
    yield warn("versions", "; ".join(other[:_SHOWN]) + more, todo)


def _pins(text: str) -> Mapping[str, str]:
    """Package -> the one version that a constraints file allows, without a local part."""
    pins = (line.split("#")[0].split(";")[0].partition("==") for line in text.splitlines())
    return {
        canonicalize_name(name.strip()): pin.strip().partition("+")[0]
        for name, equals, pin in pins
        if equals
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def torch() -> Iterator[Finding]:
    """Which build of torch there is, beside which hardware."""
    have = _installed("torch")
    if have is None:
        yield ok("torch", "not installed")
        return
    is_cpu = have.endswith("+cpu")
    has_gpu = Path("/dev/nvidiactl").exists()
    if is_cpu and has_gpu:
        todo = "Install the CUDA build if this host is to train: see docs/how-to/training.md."
        yield warn("torch", f"{have}, which leaves this host's GPU alone", todo)
    else:
        yield ok("torch", f"{have}, {'a' if has_gpu else 'no'} GPU here")
    vision = _installed("torchvision")
    if is_cpu and vision is not None and not vision.endswith("+cpu"):
        todo = "Remove it (pip uninstall torchvision), or install its +cpu build."
        yield fail("torchvision", f"{vision} is built for CUDA and breaks a CPU torch", todo)


def disk(folder: Path) -> Iterator[Finding]:
    """How much room the store's disk has."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / _GIB:,.1f} GiB free at {there}"
    todo = "Free some space: a run that finds the disk full ends, and continues later."
    if free < _NO_DISK_BYTES:
        yield fail("disk", found, todo)
    elif free < _LITTLE_DISK_BYTES:
        yield warn("disk", found, todo)
    else:
        yield ok("disk", found)


def memory() -> Iterator[Finding]:
    """How much memory is available."""
    now = psutil.virtual_memory()
    found = f"{now.available / _GIB:,.1f} of {now.total / _GIB:,.1f} GiB available"
    if now.available < _LITTLE_MEMORY_BYTES:
        yield warn("memory", found, "End what is not needed before training or evaluating.")
    else:
        yield ok("memory", found)
