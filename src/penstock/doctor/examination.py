"""The order of the checks, and how each is kept short and harmless."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from penstock.doctor import environment, history, services
from penstock.doctor.finding import Finding, fail, ok, warn
from penstock.errors import PenstockError
from penstock.ledger import Ledger
from penstock.model_registry import without_password
from penstock.recipe import Recipe
from penstock.recipe_file import load_recipe

# MLflow alone takes two seconds to import, and more on a busy machine.
_LIMIT_S = 20.0

Check = Callable[[], Iterable[Finding]]


def diagnose(
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    constraints: Path | None = None,
    limit_s: float = _LIMIT_S,
) -> list[Finding]:
    """Look at everything that a recipe needs, or at the environment alone without one.

    Args:
        path: The recipe; it need not exist.
        overrides: Dotted keys and values that replace the recipe's.
        constraints: The file of versions that were tested together; None takes that of the
            source tree, if Penstock runs from one.
        limit_s: For each check, seconds.
    """
    found = [*_within("python", limit_s, environment.python)]
    recipe, said = _recipe(path, overrides)
    found += [said, *_within("credentials", limit_s, lambda: services.credentials(path))]
    found += _within("packages", limit_s, lambda: environment.packages(recipe))
    found += _within("versions", limit_s, lambda: environment.versions(constraints))
    found += _within("torch", limit_s, environment.torch)
    folder = path.resolve().parent if recipe is None else services.store_folder(recipe)
    found += _within("disk", limit_s, lambda: environment.disk(folder))
    found += _within("memory", limit_s, environment.memory)
    return found if recipe is None else found + list(_project(recipe, limit_s))


def _recipe(path: Path, overrides: Mapping[str, Any] | None) -> tuple[Recipe | None, Finding]:
    if not path.exists():
        todo = "Name one with --recipe, or write one: penstock init DIR"
        return None, warn("recipe", f"there is none at {path}: only this host was looked at", todo)
    try:
        recipe = load_recipe(path, overrides)
    except PenstockError as error:
        return None, fail("recipe", error.message, error.hint or "Mend it; see docs/recipe.md.")
    return recipe, ok("recipe", f"{recipe.name} in {path}")


def _project(recipe: Recipe, limit_s: float) -> Iterator[Finding]:
    yield from _within("store", limit_s, lambda: services.store(recipe))
    schema = _within("ledger", limit_s, lambda: services.ledger(recipe))
    yield from schema
    tracking = _within("MLflow", limit_s, lambda: services.tracking(recipe))
    yield from tracking
    seen = services.Served()
    yield from _within("gateway", limit_s, lambda: services.gateway(recipe, seen))
    yield from _within("traces", limit_s, lambda: services.traces(recipe))
    # Opened only where it is complete: opening would make what is missing.
    if not services.has_ledger(recipe) or any(one.state != "ok" for one in schema):
        return
    ledger = Ledger(services.ledger_url(recipe))
    try:
        yield from _within("runs", limit_s, lambda: history.runs(recipe, ledger))
        yield from _within("claims", limit_s, lambda: history.claims(ledger))
        yield from _within("clock", limit_s, lambda: history.clock(recipe, ledger))
        if all(one.state == "ok" for one in tracking):
            yield from _within("alias", limit_s, lambda: history.alias(recipe, ledger))
        yield from _within("serving", limit_s, lambda: history.serving(recipe, ledger, seen))
    finally:
        ledger.close()


def _within(name: str, limit_s: float, check: Check) -> list[Finding]:
    """A check's findings; that it breaks or does not end is one too.

    The thread of one that does not end is left behind, and ends with the process.
    """
    found: list[Finding] = []

    def look() -> None:
        try:
            found.extend(check())
        except PenstockError as error:
            found.append(fail(name, without_password(error.message), error.hint))
        except Exception as error:
            said = without_password(f"{type(error).__name__}: {error}")
            found.append(fail(name, said, "The check broke; please report it."))

    thread = threading.Thread(target=look, daemon=True, name=f"doctor {name}")
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        return [fail(name, f"no answer within {limit_s:g} s", "Is it up, and reachable from here?")]
    return found
