"""Starting out: the demo, a recipe to begin with, its schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def schema() -> None:
    """Print the recipe's JSON Schema, for editors."""
    from penstock import printing
    from penstock.recipe import json_schema

    printing.as_json(json_schema())


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to put the recipe.")],
    data: Annotated[
        list[Path] | None, typer.Option(help="Your JSONL, CSV or Parquet file. Repeatable.")
    ] = None,
) -> None:
    """Write a commented recipe to start from."""
    from penstock import printing
    from penstock.starter import write_starter

    path = write_starter(folder, data or [])
    printing.OUT.print(f"Wrote {path}. Next:\n  cd {folder} && penstock plan && penstock run")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where to play it.")] = Path("demo"),
    serve: Annotated[bool, typer.Option("--serve", help="Leave the server up.")] = False,
    port: Annotated[int, typer.Option(help="Where to serve; 0: any free port.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Of metrics; 0: any free port.")] = 9090,
    seed: Annotated[int | None, typer.Option(help="Another seed, another run.")] = None,
) -> None:
    """Play the loop in three acts on this Python's own documentation."""
    from penstock.demo import play

    play(folder, keep_serving=serve, port=port, metrics_port=metrics_port, seed=seed)
