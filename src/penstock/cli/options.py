"""What commands share: their common options, and opening the recipe they name."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.artifacts import store_errors
from penstock.errors import RecipeError

if TYPE_CHECKING:
    from penstock.ledger import Ledger
    from penstock.model_files import Download
    from penstock.monitoring.metrics import HasRegistry
    from penstock.pipeline import Pipeline
    from penstock.promotion import Production

RecipePath = Annotated[
    Path, typer.Option("--recipe", "-r", help="The recipe.", envvar="PENSTOCK_RECIPE")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
MetricsPort = Annotated[
    int | None, typer.Option(min=0, max=65535, help="With --every-s: for Prometheus.")
]
MetricsHost = Annotated[str, typer.Option(help="The address of --metrics-port; 0.0.0.0 in a pod.")]
Page = Annotated[Path | None, typer.Option("--report", help="Write an HTML page with plots here.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value, as in train.max_steps=10. Repeatable."),
]
LedgerUrl = Annotated[
    str | None,
    typer.Option(
        "--ledger", envvar="PENSTOCK_LEDGER", help="Without a recipe: the ledger's database URL."
    ),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store", envvar="PENSTOCK_STORE", help="Without a recipe: a folder with a ledger in it."
    ),
]
Tracking = Annotated[
    str | None,
    typer.Option(
        "--tracking", help="Without a recipe: MLflow's URI, by default $MLFLOW_TRACKING_URI."
    ),
]
ModelName = Annotated[
    str | None, typer.Option(help="As in catalog.schema.model. Null takes the recipe's.")
]
StageName = Annotated[
    str | None, typer.Option("--stage", help="The alias. Null takes the recipe's, or production.")
]
DEFAULT = Path("recipe.yaml")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,99}")


def write_page(path: Path, page: str) -> None:
    """Write what `--report` asks for.

    Raises:
        StoreError: It cannot be written there.
    """
    with store_errors(path):
        path.write_text(page, encoding="utf-8")


@contextlib.contextmanager
def showing(metrics: HasRegistry, host: str, port: int | None) -> Iterator[None]:
    """While the block runs, Prometheus may ask there; without a port nobody may.

    Raises:
        PenstockError: The port is taken.
    """
    if port is None:
        yield
        return
    from penstock import printing
    from penstock.monitoring.metrics import MetricsServer

    with contextlib.closing(MetricsServer(metrics, host, port, "--metrics-port")) as server:
        printing.note(f"Metrics: {server.url}")
        yield


def open_recipe(recipe: Path, set_: list[str] | None, quiet: bool) -> Pipeline:
    """The pipeline of a recipe with ``--set`` applied; ``quiet`` shows no bars."""
    from penstock import printing
    from penstock.pipeline import open_pipeline

    progress: Any = None if quiet else printing.Bars()
    return open_pipeline(recipe, overrides_of(set_), progress)


@dataclass(frozen=True)
class Where:
    """Where to look for models: in a recipe's project, or in a ledger and an MLflow server.

    What is typed goes before what the environment says.
    """

    context: typer.Context
    recipe: Path
    set_: list[str] | None
    ledger: str | None
    store: Path | None
    tracking: str | None

    @property
    def uses_recipe(self) -> bool:
        """A ledger that is named is meant; else a recipe that is there, or was asked for.

        Raises:
            RecipeError: Both were typed.
        """
        is_typed = self._is_typed("recipe") or self._is_typed("set_")
        if is_typed and (self._is_typed("ledger") or self._is_typed("store")):
            raise RecipeError(
                "A recipe and a ledger were both given, and each says what serves.",
                "Leave out --recipe and --set, or --ledger and --store.",
            )
        if is_typed:
            return True
        if self.ledger or self.store:
            return False
        return self.recipe != DEFAULT or self.recipe.exists()

    def _is_typed(self, option: str) -> bool:
        """Whether an option stands on the command line, not in the environment."""
        source = self.context.get_parameter_source(option)
        return source is not None and source.name == "COMMANDLINE"

    def production(self, model_name: str | None, stage: str | None) -> Production:
        """The alias of a model that a command is about.

        Raises:
            RecipeError: Neither a recipe nor a ledger, a name or an MLflow server is given.
        """
        from penstock import models

        alias = None if stage is None else _alias(stage)
        if self.uses_recipe:
            if self.tracking is not None:
                raise RecipeError(
                    "--tracking is for models without a recipe.",
                    "Set `tracking` in the recipe, or name a ledger by --ledger or --store.",
                )
            return models.production(open_recipe(self.recipe, self.set_, True), model_name, alias)
        return self._without_recipe(model_name, alias or "production")

    def open_ledger(self) -> Ledger:
        """The ledger alone, for what is kept there and nowhere else.

        Raises:
            RecipeError: Neither a recipe nor a ledger is given.
        """
        from penstock.ledger import Ledger

        if self.uses_recipe:
            return open_recipe(self.recipe, self.set_, quiet=True).ledger
        return Ledger(self._named_ledger())

    def download(self, model_name: str | None, version: int | None, folder: Path) -> Download:
        """Fetch a version from MLflow.

        Raises:
            RecipeError: Its name, its number or the MLflow server is not given.
        """
        from penstock.model_files import download
        from penstock.model_registry import ModelRegistry

        name = _given(model_name, "--model-name")
        if version is None:
            raise RecipeError("--version is missing.", "Ask: penstock model serving")
        return download(ModelRegistry(tracking_uri(self.tracking)), name, version, folder)

    def _without_recipe(self, model_name: str | None, alias: str) -> Production:
        from penstock.ledger import Ledger
        from penstock.model_registry import ModelRegistry
        from penstock.promotion import Production

        url = self._named_ledger()
        name = _given(model_name, "--model-name")
        registry = ModelRegistry(tracking_uri(self.tracking))
        return Production(Ledger(url), registry, name, alias, admits=True)

    def _named_ledger(self) -> str:
        if not self.ledger and not self.store:
            raise RecipeError(
                "There is no recipe here and no ledger is named, so nothing says what serves.",
                "Name the ledger by --ledger postgresql://USER@HOST/NAME, by --store FOLDER, "
                "or by PENSTOCK_LEDGER.",
            )
        typed = [self._is_typed("ledger"), self._is_typed("store")]
        if self.ledger and self.store and typed[0] == typed[1]:
            raise RecipeError("--ledger and --store both name a ledger.", "Give one of them.")
        if self.ledger and not typed[1]:
            return self.ledger
        folder = Path(self.store or "").resolve()
        with store_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder / 'ledger.db'}"


def tracking_uri(given: str | None) -> str:
    """MLflow's address, from the command line or the environment.

    Raises:
        RecipeError: There is none.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise RecipeError(
            "No MLflow server is named.", "Set MLFLOW_TRACKING_URI, or give --tracking URI."
        )
    return uri


def _given(value: str | None, flag: str) -> str:
    if not value:
        raise RecipeError(f"{flag} is missing; there is no recipe to take it from.")
    return value


def _alias(stage: str) -> str:
    alias = stage.lower()  # MLflow's old stages were Production and Staging
    if not _ALIAS.fullmatch(alias) or alias == "latest" or re.fullmatch(r"v[0-9]+", alias):
        raise RecipeError(
            f"--stage {stage!r} is no alias.",
            "Small letters, digits, - and _; not latest, and not v1, which MLflow keeps.",
        )
    return alias


def overrides_of(set_: list[str] | None) -> dict[str, Any]:
    """What ``--set`` says, by dotted keys.

    Raises:
        RecipeError: One has no ``=``.
    """
    import yaml

    out = {}
    for item in set_ or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise RecipeError(f"--set {item!r} has no '='.", "Write --set train.max_steps=10")
        out[key] = yaml.safe_load(value)
    return out
