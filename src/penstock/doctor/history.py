"""What the ledger remembers: who serves, runs that ended early, claims nobody holds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import sqlalchemy as sa

from penstock.doctor.finding import Finding, fail, ok, warn
from penstock.doctor.services import Served, date_of
from penstock.errors import PenstockError
from penstock.ledger import Ledger, schema
from penstock.ledger.database import clock as clock_of
from penstock.ledger.processes import is_dead, process_of
from penstock.recipe import Recipe

# Leases of 30 s and API keys' days survive less than this; certificates need no better.
_MAX_SKEW_S = 5.0
_DAY_S = 24 * 3600.0


def runs(recipe: Recipe, ledger: Ledger) -> Iterator[Finding]:
    """Whether the last run ended as it should, and no run's process is dead."""
    found = ledger.runs(recipe.name)
    if not found:
        yield ok("runs", "none yet; start one with: penstock run")
        return
    dead = [
        run.id for run in found if run.status == "RUNNING" and run.holder and is_dead(run.holder)
    ]
    if dead:
        todo = "Run again: penstock run. It goes on where they ended, and marks them."
        yield warn("runs", f"{', '.join(dead)}: running by the ledger, but nobody does", todo)
        return
    last = found[0]
    said = f"the last one, {last.id}, is {last.status}: {last.message}"
    if last.status in ("INTERRUPTED", "FAILED"):
        yield warn("runs", said, f"See: penstock show {last.id}; then run again.")
    elif last.status == "RUNNING" and time.time() - last.started_s > _DAY_S:
        yield warn("runs", f"{last.id} has been running for over a day", "Is it still wanted?")
    else:
        yield ok("runs", said)


def claims(ledger: Ledger) -> Iterator[Finding]:
    """Whether every claim has somebody who holds it."""
    with ledger.database.read() as connection:
        now_s = clock_of(connection)
        rows = connection.execute(sa.select(schema.claims)).all()
    stale = [row.key for row in rows if row.until_s < now_s or is_dead(process_of(row.holder))]
    if stale:
        shown = ", ".join(key[:40] for key in stale[:5])
        todo = "Nobody waits for them, and the next run removes them: penstock run"
        yield warn("claims", f"{len(stale)} left behind: {shown}", todo)
    else:
        yield ok("claims", f"{len(rows)} held" if rows else "none")


def clock(recipe: Recipe, ledger: Ledger) -> Iterator[Finding]:
    """Whether this host's clock agrees with the ledger's, and with MLflow's server."""
    with ledger.database.read() as connection:
        skews = {"the ledger": clock_of(connection) - time.time()}
    newest = [run.started_s for run in ledger.runs(limit=1)]
    if newest and newest[0] > time.time() + _MAX_SKEW_S:
        skews["the last run's start"] = newest[0] - time.time()
    if (recipe.tracking or "").startswith(("http://", "https://")):
        said = date_of(f"{(recipe.tracking or '').rstrip('/')}/health")
        if said is not None:
            skews["MLflow"] = parsedate_to_datetime(said).timestamp() - time.time()
    off = {who: skew for who, skew in skews.items() if abs(skew) > _MAX_SKEW_S}
    if off:
        found = ", ".join(f"{who} is {skew:+.0f} s off this host" for who, skew in off.items())
        yield warn("clock", found, "Let NTP set the clocks of all hosts.")
    else:
        yield ok("clock", f"agrees with {' and '.join(skews)}")


def alias(recipe: Recipe, ledger: Ledger) -> Iterator[Finding]:
    """Whether MLflow's alias is where the ledger's pointer is."""
    name, label = recipe.model_name, f"{recipe.model_name}@{recipe.deploy.alias}"
    pointer = ledger.pointer(name, recipe.deploy.alias)
    if pointer is None:
        yield ok("alias", f"{label} has not been set yet")
        return
    from penstock.doctor.services import store_folder
    from penstock.stages.deploy import production_of
    from penstock.store import Store

    try:
        production_of(recipe, Store(store_folder(recipe)), ledger).check_alias()
    except PenstockError as error:
        yield fail("alias", error.message, error.hint)
    else:
        yield ok("alias", f"{label} is version {pointer.version}, in the ledger and in MLflow")


def serving(recipe: Recipe, ledger: Ledger, seen: Served) -> Iterator[Finding]:
    """Whether the gateway serves what the pointers name."""
    models = recipe.served.models
    followed = {
        name: pointer.version
        for name, model in models.items()
        if model.registered is not None and not isinstance(model.version, int)
        and (pointer := ledger.pointer(model.registered, model.version or recipe.deploy.alias))
    }  # fmt: skip
    if not followed:
        yield ok("serving", "no version has been promoted yet")
        return
    if not seen.answers:
        wanted = ", ".join(f"{name} version {number}" for name, number in followed.items())
        yield warn("serving", f"{wanted}: promoted, but nobody serves it", "penstock serve")
        return
    for name, number in followed.items():
        yield _served(name, number, seen)


def _served(name: str, wanted: int, seen: Served) -> Finding:
    model = seen.models.get(name)
    if model is None:
        todo = "Another project's gateway listens there, or it was started before: restart it."
        return fail("serving", f"the gateway has no model {name}", todo)
    if model.get("version") == wanted:
        return ok("serving", f"{name} is served as version {wanted}")
    why = model.get("load_failure") or "it is being loaded"
    todo = "Wait for it, or see the gateway's log; the old version answers meanwhile."
    return warn("serving", f"{name} is version {model.get('version')}, not {wanted}: {why}", todo)
