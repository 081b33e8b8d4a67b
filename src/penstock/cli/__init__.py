"""The command line: parses, calls, prints; decides nothing.

One module for each kind of command.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from penstock import __version__
from penstock.cli import (
    alarms,
    clusters,
    console,
    data,
    doctor,
    drift,
    export,
    gate,
    judge,
    keys,
    loop,
    models,
    news,
    observers,
    orchestrate,
    rollout,
    scores,
    serving,
    start,
    watch,
)
from penstock.errors import LedgerError, PenstockError

app = typer.Typer(
    help="The gated pipe that feeds a production LLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (
    start,
    loop,
    news,
    data,
    gate,
    models,
    rollout,
    serving,
    scores,
    console,
    keys,
    export,
    orchestrate,
    clusters,
    observers,
    drift,
    judge,
    watch,
    alarms,
    doctor,
):
    app.add_typer(part.app)

_INTERRUPTED = 130  # what Typer makes of Ctrl-C, as shells do

# Read by libraries when they are imported, so set before any of them is: their
# bars would break into ours, and nothing here reports to anybody.
_ENVIRONMENT = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> None:
    """Run the command line; a user's mistake ends in words, never in a traceback."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _complain("Stopped.", "What was finished is kept; the next run goes on from there.")
        raise
    except PenstockError as error:
        _complain(error.message, error.hint)
        sys.exit(error.exit_code)
    except Exception as error:
        if not _is_of_the_database(error):
            raise
        _complain(f"The ledger failed: {str(error).splitlines()[0]}", "Check the database.")
        sys.exit(LedgerError.exit_code)


def _is_of_the_database(error: Exception) -> bool:
    """Whether SQLAlchemy raised it; not imported only to ask, which takes longer than help."""
    sqlalchemy = sys.modules.get("sqlalchemy.exc")
    return sqlalchemy is not None and isinstance(error, sqlalchemy.SQLAlchemyError)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"penstock {__version__}")
        raise typer.Exit


def _complain(message: str, hint: str) -> None:
    from rich.text import Text

    from penstock.printing import ERR

    ERR.print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)
    if hint:
        ERR.print(Text(hint, style="dim"), soft_wrap=True)
