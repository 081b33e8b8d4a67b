"""API keys, and what their use has cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.options import DEFAULT, Json, LedgerUrl, RecipePath, Set, StoreFolder, Where
from penstock.errors import RecipeError

if TYPE_CHECKING:
    from penstock.ledger import Ledger
    from penstock.ledger.accounts import Balance, Dimension, Usage
    from penstock.ledger.api_keys import ApiKey

app = typer.Typer()
keys_app = typer.Typer(help="API keys of the gateway.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

Limit = Annotated[str | None, typer.Option(help="A whole number, or `none` to lift the limit.")]

_COLUMNS: dict[str, Dimension] = {
    "model": "model",
    "version": "version",
    "run": "run_id",
    "key": "key_id",
    "tenant": "tenant",
    "day": "day",
}


@keys_app.command("create")
def keys_create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    tenant: Annotated[str, typer.Option(help="Whose it is.")] = "",
    model: Annotated[
        list[str] | None, typer.Option(help="A model it may ask. Repeatable; by default all.")
    ] = None,
    requests_per_min: Annotated[int | None, typer.Option(help="A rate.")] = None,
    tokens_per_min: Annotated[
        int | None, typer.Option(help="A rate; prompt and answer together.")
    ] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="For each period.")] = None,
    budget_usd: Annotated[str | None, typer.Option(help="For each period, as in 12.50.")] = None,
    period: Annotated[str, typer.Option(help="day, week, month (in UTC) or total.")] = "month",
    expires: Annotated[
        str | None, typer.Option(help="The last UTC day it is valid, as in 2027-01-31.")
    ] = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    json_: Json = False,
) -> None:
    """Make a key and print it: this once, it is stored nowhere."""
    from penstock import printing
    from penstock.ledger.api_keys import ApiKey, ApiKeys
    from penstock.ledger.periods import as_period

    asked = ApiKey(
        id="",
        name=name,
        tenant=tenant,
        models=frozenset(model) if model else None,
        requests_per_min=requests_per_min,
        tokens_per_min=tokens_per_min,
        budget_tokens=budget_tokens,
        budget_nanousd=None if budget_usd is None else _nanousd(budget_usd),
        period=as_period(period),
        expires_s=None if expires is None else _end_of(expires),
    )
    database = Where(context, recipe, set_, ledger, store, None).open_ledger().database
    made, secret = ApiKeys(database).create(asked)
    if json_:
        printing.as_json({"id": made.id, "name": made.name, "secret": secret})
        return
    # Bare, so that it can be piped; a terminal would break a long line of a table.
    print(secret)
    printing.ERR.print(f"This is {made.id}. Keep it: it is not shown again.", style="dim")


@keys_app.command("list")
def keys_list(
    context: typer.Context,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    json_: Json = False,
) -> None:
    """List keys, their limits, and what they have spent in the period that is now."""
    from penstock import printing
    from penstock.ledger.accounts import Accounts
    from penstock.ledger.api_keys import ApiKeys

    database = Where(context, recipe, set_, ledger, store, None).open_ledger().database
    keys = ApiKeys(database).list()
    balances = Accounts(database).balances(keys)
    found = [(key, balances[key.id]) for key in keys]
    if json_:
        printing.as_json([_fields(key, balance) for key, balance in found])
        return
    columns = ("key", "for", "may use", "spent", "held", "state")
    printing.table(columns, [_row(key, balance) for key, balance in found])


@keys_app.command("change")
def keys_change(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="As `penstock keys list` shows it.")],
    model: Annotated[
        list[str] | None, typer.Option(help="A model it may ask. Repeatable; `all` for all.")
    ] = None,
    requests_per_min: Limit = None,
    tokens_per_min: Limit = None,
    budget_tokens: Limit = None,
    budget_usd: Annotated[str | None, typer.Option(help="As in 12.50, or `none`.")] = None,
    period: Annotated[str | None, typer.Option(help="day, week, month or total.")] = None,
    expires: Annotated[str | None, typer.Option(help="As in 2027-01-31, or `none`.")] = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
) -> None:
    """Give a key other limits; what is not said stays. Gateways know within two seconds."""
    from penstock import printing
    from penstock.ledger.api_keys import ApiKeys

    said: dict[str, tuple[str | None, Callable[[str], Any]]] = {
        "requests_per_min": (requests_per_min, _whole),
        "tokens_per_min": (tokens_per_min, _whole),
        "budget_tokens": (budget_tokens, _whole),
        "budget_nanousd": (budget_usd, _nanousd),
        "expires_s": (expires, _end_of),
        "period": (period, str),
    }
    changes: dict[str, Any] = {
        name: None if text == "none" else read(text)
        for name, (text, read) in said.items()
        if text is not None
    }
    if model:
        changes["models"] = None if model == ["all"] else frozenset(model)
    if not changes:
        raise RecipeError("Nothing is to be changed.", "Say what: penstock keys change --help")
    database = Where(context, recipe, set_, ledger, store, None).open_ledger().database
    changed = ApiKeys(database).change(key_id, changes)
    allowed = "; ".join(_limits(changed)) or "everything"
    printing.note(f"{changed.id} ({changed.name}) may use: {allowed}.")


@keys_app.command("revoke")
def keys_revoke(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="As `penstock keys list` shows it.")],
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
) -> None:
    """End a key; gateways refuse it within two seconds."""
    from penstock import printing
    from penstock.ledger.api_keys import ApiKeys

    database = Where(context, recipe, set_, ledger, store, None).open_ledger().database
    revoked = ApiKeys(database).revoke(key_id)
    printing.note(f"{revoked.id} ({revoked.name}) is revoked.")


@app.command()
def cost(
    context: typer.Context,
    by: Annotated[str, typer.Option(help="model, version, run, key, tenant or day.")] = "model",
    since: Annotated[
        str | None, typer.Option(help="The first UTC day that counts, or days back as in 30d.")
    ] = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    json_: Json = False,
) -> None:
    """Sum up requests, tokens and what they cost."""
    from penstock import printing
    from penstock.ledger.accounts import Accounts, Usage
    from penstock.registry import did_you_mean

    if by not in _COLUMNS:
        raise RecipeError(f"--by {by!r}.{did_you_mean(by, tuple(_COLUMNS))}")
    first = _since(since)
    opened = Where(context, recipe, set_, ledger, store, None).open_ledger()
    used = Accounts(opened.database).usage(_COLUMNS[by], first)
    if json_:
        printing.as_json([{by: name, **_shown(usage)} for name, usage in used.items()])
        return
    empty = {"tenant": "(no tenant)", "run": "(no run)"}
    names = _key_names(opened) if by == "key" else {"": empty.get(by, "")}
    lines = {names.get(name, name): usage for name, usage in used.items()}
    if len(lines) > 1:
        lines["all"] = reduce(Usage.plus, used.values())
    rows = [(name, *map(_number, _shown(usage).values())) for name, usage in lines.items()]
    printing.table((by, "requests", "prompt tokens", "completion tokens", "USD"), rows)


def _shown(usage: Usage) -> dict[str, Any]:
    from penstock.serving.prices import to_dollars

    return {
        "requests": usage.requests,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "usd": f"{to_dollars(usage.nanousd):f}",
    }


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _key_names(ledger: Ledger) -> dict[str, str]:
    from penstock.ledger.api_keys import ApiKeys

    named = {key.id: f"{key.id} {key.name}" for key in ApiKeys(ledger.database).list()}
    return {"": "(no key)", **named}


def _fields(key: ApiKey, balance: Balance) -> dict[str, Any]:
    models = None if key.models is None else sorted(key.models)
    ended = key.ended(time.time())
    return {**vars(key), "models": models, "state": ended or "valid", **vars(balance)}


def _row(key: ApiKey, balance: Balance) -> tuple[object, ...]:
    return (
        key.id,
        f"{key.name} ({key.tenant})" if key.tenant else key.name,
        "; ".join(_limits(key)) or "everything",
        _amount(balance.tokens_spent or None, balance.nanousd_spent or None),
        _amount(balance.tokens_held or None, balance.nanousd_held or None),
        key.ended(time.time()) or "valid",
    )


def _limits(key: ApiKey) -> list[str]:
    """A key's limits in words."""
    limits = [] if key.models is None else [", ".join(sorted(key.models))]
    if key.requests_per_min is not None:
        limits.append(f"{key.requests_per_min:,} requests a minute")
    if key.tokens_per_min is not None:
        limits.append(f"{key.tokens_per_min:,} tokens a minute")
    if key.has_budget:
        each = "in all" if key.period == "total" else f"a {key.period}"
        limits.append(f"{_amount(key.budget_tokens, key.budget_nanousd)} {each}")
    return limits


def _amount(tokens: int | None, nanousd: int | None) -> str:
    from penstock.serving.prices import to_dollars

    shown = [] if tokens is None else [f"{tokens:,} tokens"]
    return ", ".join(shown + ([] if nanousd is None else [f"${to_dollars(nanousd):f}"]))


def _whole(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise RecipeError(f"{text!r} is no limit.", "Write it as in 60000, or none to lift it.")
    return int(text)


def _nanousd(text: str) -> int:
    from penstock.serving.prices import to_nanousd

    try:
        dollars = Decimal(text)
    except InvalidOperation:
        dollars = Decimal("NaN")
    if not dollars.is_finite() or dollars <= 0:
        raise RecipeError(f"--budget-usd {text!r} is no amount.", "Write it as in 12.50.")
    return to_nanousd(dollars)


def _end_of(text: str) -> float:
    """The end of a UTC day, Unix seconds."""
    midnight = datetime.combine(_day(text, "--expires"), datetime.min.time(), UTC)
    return (midnight + timedelta(days=1)).timestamp()


def _since(text: str | None) -> str:
    """The first UTC day that counts; empty for all."""
    if text is None:
        return ""
    if text.endswith("d") and text[:-1].isdecimal() and len(text) < 6:
        return (datetime.now(UTC).date() - timedelta(days=int(text[:-1]))).isoformat()
    return _day(text, "--since").isoformat()


def _day(text: str, flag: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise RecipeError(f"{flag} {text!r} is no day.", "Write it as in 2027-01-31.") from None
