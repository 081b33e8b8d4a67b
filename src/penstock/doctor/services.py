"""What a project asks: its ledger, store, MLflow, gateway, and who receives traces."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa

from penstock.doctor.finding import Finding, fail, ok, warn
from penstock.errors import PenstockError
from penstock.ledger import schema
from penstock.model_registry import without_password
from penstock.project import WORKING_FOLDER
from penstock.recipe import Recipe

_TIMEOUT_S = 3
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# Options that name a variable in which an adapter finds a secret.
_NAMES_A_SECRET = re.compile(r"^\s*[\w.-]*_env:\s*['\"]?([A-Za-z_][A-Za-z0-9_]*)", re.MULTILINE)


@dataclass
class Served:
    """What the gateway says it serves.

    Attributes:
        answers: Whether one listens.
        models: By name, as ``/readyz`` tells.
    """

    answers: bool = False
    models: Mapping[str, Any] = field(default_factory=dict)


# -- the store and the ledger -------------------------------------------------------


def store_folder(recipe: Recipe) -> Path:
    """Where this host keeps what it makes."""
    name = WORKING_FOLDER if "://" in recipe.store else recipe.store
    return (recipe.folder / name).resolve()


def ledger_url(recipe: Recipe) -> str:
    """The ledger's address."""
    default = f"sqlite:///{store_folder(recipe) / 'ledger.db'}"
    return recipe.database(recipe.ledger or default)


def has_ledger(recipe: Recipe) -> bool:
    """Whether there is a ledger to open: a file of SQLite's may not have been made yet."""
    path = _sqlite_file(ledger_url(recipe))
    return path is None or path.is_file()


def store(recipe: Recipe) -> Iterator[Finding]:
    """Whether the store's folder can be written, or made."""
    folder = store_folder(recipe)
    there = next(one for one in (folder, *folder.parents) if one.exists())
    todo = "Change its owner, or set `store` in the recipe."
    if not there.is_dir():
        yield fail("store", f"{there} is a file", todo)
    elif not os.access(there, os.W_OK | os.X_OK):
        yield fail("store", f"{there} is not writable", todo)
    elif there != folder:
        yield ok("store", f"{folder}, which the first run makes")
    else:
        yield ok("store", f"{folder} is writable")
    if "://" in recipe.store:
        yield from _object_store(recipe.store)


def _object_store(url: str) -> Iterator[Finding]:
    from penstock.folders import ObjectFolder

    try:
        ObjectFolder(url).folders()
    except PenstockError as error:
        yield fail("object store", error.message, error.hint)
    else:
        yield ok("object store", f"{url} answers")


def ledger(recipe: Recipe) -> Iterator[Finding]:
    """Whether the ledger answers, and has the tables and columns of this Penstock."""
    address = ledger_url(recipe)
    shown = without_password(address)
    if not has_ledger(recipe):
        yield ok("ledger", f"{shown}, which the first run makes")
        return
    try:
        engine = sa.create_engine(_hurried(address))
        with engine.connect() as connection:
            columns = _columns(sa.inspect(connection))
        engine.dispose()
    except (sa.exc.SQLAlchemyError, ModuleNotFoundError, ValueError) as error:
        said = without_password(str(error).splitlines()[0])
        yield fail("ledger", f"{shown}: {said}", "Check `ledger`, and that the database is up.")
        return
    yield _schema(shown, columns)


def _schema(shown: str, columns: Mapping[str, set[str]]) -> Finding:
    tables = schema.metadata.tables
    other = [
        f"{name}.{column.name}"
        for name in tables.keys() & columns.keys()
        for column in tables[name].columns
        if column.name not in columns[name]
    ]
    if other:
        todo = "Use the Penstock that made it, or a new ledger."
        return fail("ledger", f"{shown} has no {', '.join(sorted(other))}", todo)
    missing = sorted(tables.keys() - columns.keys())
    if missing:
        todo = "The next command that opens it makes them, as in: penstock runs"
        return warn("ledger", f"{shown} has no table {', '.join(missing)} yet", todo)
    return ok("ledger", f"{shown} answers; its {len(tables)} tables are as they should be")


def _columns(inspector: sa.Inspector) -> dict[str, set[str]]:
    return {
        name: {str(column["name"]) for column in inspector.get_columns(name)}
        for name in inspector.get_table_names()
    }


def _hurried(address: str) -> sa.URL:
    """The address, so that a database that is away is not waited for."""
    url = sa.make_url(address)
    if url.get_backend_name() == "postgresql":
        return url.update_query_dict({"connect_timeout": str(_TIMEOUT_S)})
    return url


def _sqlite_file(address: str) -> Path | None:
    scheme, separator, path = address.partition(":///")
    return Path(path) if separator and scheme.startswith("sqlite") else None


# -- MLflow, the gateway, traces ----------------------------------------------------


def tracking(recipe: Recipe) -> Iterator[Finding]:
    """Whether MLflow answers."""
    address = recipe.database(recipe.tracking or "sqlite:///mlflow.db")
    shown = without_password(address)
    if recipe.tracking is None or _sqlite_file(address) is not None:
        yield ok("MLflow", f"{shown if recipe.tracking else 'a file in the store'}, no server")
        return
    if urlsplit(address).scheme not in ("http", "https"):
        yield ok("MLflow", f"{shown}, which is asked when it is needed")
        return
    status, said = _get(f"{address.rstrip('/')}/health")
    if status == 200:
        yield ok("MLflow", f"{shown} answers")
    elif status in (401, 403):
        todo = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the token."
        yield fail("MLflow", f"{shown} refuses the credentials", todo)
    else:
        yield fail("MLflow", f"{shown}: {said}", "Start it, or correct `tracking`.")


def gateway(recipe: Recipe, seen: Served) -> Iterator[Finding]:
    """Whether the gateway is up and every model can answer; fills ``seen``."""
    serve = recipe.served
    at = f"http://{_reachable(serve.host)}:{serve.port}"
    if serve.port == 0:
        yield ok("gateway", "serve.port is 0, so nobody knows where it listens")
        return
    status, said = _get(f"{at}/readyz")
    if status is None:
        yield ok("gateway", f"nothing serves at {at}")
        return
    seen.answers, seen.models = True, _models(said)
    if status == 200:
        yield ok("gateway", f"{at} is ready")
    elif status == 503 and seen.models:
        late = [name for name, one in seen.models.items() if not one.get("ready")]
        yield warn("gateway", f"{at} is not ready: {', '.join(late)}", f"See {at}/readyz.")
    else:
        yield fail("gateway", f"{at} answers {status}: not Penstock?", "Set serve.port.")
    if serve.metrics_port:
        yield _metrics(f"http://{_reachable(serve.host)}:{serve.metrics_port}/metrics")


def _metrics(url: str) -> Finding:
    status, said = _get(url)
    if status == 200:
        return ok("metrics", f"{url} answers")
    return fail("metrics", f"{url}: {said[:80]}", "Prometheus sees nothing: set metrics_port.")


def traces(recipe: Recipe) -> Iterator[Finding]:
    """Whether who receives traces can be reached, and has its keys."""
    config = recipe.serve.traces
    if config is None:
        return
    from penstock.monitoring.trace_targets import target

    try:
        url = urlsplit(target(config, os.environ).url)
    except PenstockError as error:
        yield fail("traces", error.message, error.hint)
        return
    port = url.port or (443 if url.scheme == "https" else 80)
    where = f"{config.to} at {url.hostname}:{port}"
    try:
        socket.create_connection((url.hostname or "", port), _TIMEOUT_S).close()
    except OSError as error:
        todo = "Requests are served all the same; traces are lost until it is up."
        yield warn("traces", f"{where}: {error.strerror or error}", todo)
    else:
        yield ok("traces", f"{where} listens")


# -- credentials ---------------------------------------------------------------------


def credentials(path: Path) -> Iterator[Finding]:
    """Whether every variable that the recipe names is set; never what it is set to."""
    names = _named(path) if path.is_file() else []
    unset = [name for name in names if not os.environ.get(name)]
    if unset:
        todo = f"As in: export {unset[0]}=..."
        yield fail("credentials", f"not set: {', '.join(unset)}", todo)
    elif names:
        yield ok("credentials", f"set: {', '.join(names)}")
    else:
        yield ok("credentials", "the recipe names no variable")


def _named(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    return sorted({*_VARIABLE.findall(text), *_NAMES_A_SECRET.findall(text)})


# -- HTTP ----------------------------------------------------------------------------


def date_of(url: str) -> str | None:
    """What a server's ``Date`` header says; None if it does not answer."""
    try:
        with _open(url) as answer:
            said: str | None = answer.headers.get("date")
            return said
    except (OSError, ValueError):
        return None


def _get(url: str) -> tuple[int | None, str]:
    """Status and body; or no status and why."""
    try:
        with _open(url) as answer:
            return answer.status, answer.read(1_000_000).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(1_000_000).decode("utf-8", "replace")
    except urllib.error.URLError as error:
        return None, without_password(str(error.reason))
    except (OSError, ValueError) as error:
        return None, without_password(str(error))


def _open(url: str) -> Any:
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    # Only addresses that the recipe names, and only by HTTP: see the callers.
    asked = urllib.request.Request(parts._replace(netloc=place).geturl())  # noqa: S310
    user = parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user and parts.path.endswith("/health"):
        password = parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
        pair = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
        asked.add_unredirected_header("Authorization", f"Basic {pair}")
    return urllib.request.urlopen(asked, timeout=_TIMEOUT_S)  # noqa: S310


def _models(said: str) -> Mapping[str, Any]:
    try:
        models = json.loads(said)["models"]
    except (ValueError, KeyError, TypeError):
        return {}
    return models if isinstance(models, dict) else {}


def _reachable(host: str) -> str:
    """Where a gateway that listens everywhere can be reached from here."""
    own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{own}]" if ":" in own else own
