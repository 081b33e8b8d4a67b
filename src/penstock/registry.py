"""Names in recipes -> the objects that implement them.

A built-in name is one line in ``BUILTIN``. A third party's package adds names
through the entry-point group ``penstock.<seam>``, and a recipe can always name
an object directly as ``"module:Object"``, loaded from the recipe's folder or
from any installed package.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from penstock.errors import MissingExtra, PenstockError, RecipeError

BUILTIN: dict[str, dict[str, str]] = {
    "sources": {
        "files": "penstock.sources.files:FilesSource",
        "huggingface": "penstock.sources.huggingface:HuggingFaceSource",
        "kafka": "penstock.sources.kafka:KafkaSource",
        "sql": "penstock.sources.sql:SqlSource",
        "delta": "penstock.sources.delta:DeltaSource",
        "rest": "penstock.sources.rest:RestSource",
        "fivetran": "penstock.sources.fivetran:FivetranSource",
        "requests": "penstock.sources.requests:RequestsSource",
    },
    "features": {
        "feast": "penstock.features.feast:FeastStore",
    },
    "contracts": {
        "great_expectations": "penstock.contracts.great_expectations:GreatExpectationsContract",
        "rows": "penstock.contracts.rows:RowRules",
        "soda": "penstock.contracts.soda:SodaContract",
    },
    "rules": {
        "tokens": "penstock.contracts.rules:Tokens",
        "repetition": "penstock.contracts.rules:Repetition",
        "refusal": "penstock.contracts.rules:Refusal",
        "encoding": "penstock.contracts.rules:Encoding",
        "secrets": "penstock.contracts.rules:Secrets",
        "personal_data": "penstock.contracts.rules:PersonalData",
        "messages": "penstock.contracts.rules:Messages",
        "preference_pair": "penstock.contracts.rules:PreferencePair",
    },
    "transforms": {
        "normalise": "penstock.transforms.clean:Normalise",
        "filter": "penstock.transforms.filter:Filter",
        "dedupe": "penstock.transforms.dedupe:ExactDedupe",
        "quality": "penstock.transforms.quality:Quality",
        "language": "penstock.transforms.language:Language",
        "redact": "penstock.transforms.redact:Redact",
        "near_dedupe": "penstock.transforms.near_dedupe:NearDedupe",
        "decontaminate": "penstock.transforms.decontaminate:Decontaminate",
        "split": "penstock.transforms.split:Split",
    },
    "engines": {
        "local": "penstock.engines.local:LocalEngine",
        "ray": "penstock.engines.ray:RayEngine",
        "spark": "penstock.engines.spark:SparkEngine",
    },
    "launchers": {
        "deepspeed": "penstock.launchers.deepspeed:DeepSpeedLauncher",
        "local": "penstock.launchers.local:LocalLauncher",
        "ray": "penstock.launchers.ray:RayLauncher",
    },
    "evaluators": {
        "hf": "penstock.evaluators.hf:HfEvaluator",
        "endpoint": "penstock.evaluators.endpoint:EndpointEvaluator",
        "vllm": "penstock.evaluators.vllm:VllmEvaluator",
    },
    "backends": {
        "ctranslate2": "penstock.serving.backends.ctranslate2:CTranslate2Backend",
        "ray_serve": "penstock.serving.backends.ray_serve:RayServeBackend",
        "transformers": "penstock.serving.backends.transformers:TransformersBackend",
        "sentence_transformers": (
            "penstock.serving.backends.sentence_transformers:SentenceTransformersBackend"
        ),
        "openai": "penstock.serving.backends.openai:OpenAIBackend",
        "vllm": "penstock.serving.backends.vllm:VllmBackend",
    },
    # How each is asked to start a run.
    "orchestrators": {
        "airflow": "penstock.orchestrators.airflow_api:trigger",
        "dagster": "penstock.orchestrators.dagster_api:trigger",
        "prefect": "penstock.orchestrators.prefect_api:trigger",
    },
}


def names(seam: str) -> list[str]:
    """All names a recipe may use for ``seam``, sorted."""
    third_party = {point.name for point in entry_points(group=f"penstock.{seam}")}
    return sorted(third_party | set(BUILTIN[seam]))


def resolve(seam: str, name: str, folder: Path | None = None) -> Any:
    """Load what ``name`` stands for.

    Args:
        seam: A key of ``BUILTIN``.
        name: A registered name, or ``"module:Object"``.
        folder: The recipe's folder; modules in it can be named by ``"module:Object"``.

    Raises:
        RecipeError: The name is not known, or the module or object does not exist.
        MissingExtra: The module exists but imports a library that is not installed.
    """
    if ":" in name:
        return _load(name, seam, folder)
    if name in BUILTIN[seam]:
        return _load(BUILTIN[seam][name], seam, None)
    for point in entry_points(group=f"penstock.{seam}", name=name):
        return point.load()
    raise RecipeError(f"{name!r} is not one of the {seam}.{did_you_mean(name, names(seam))}")


def did_you_mean(received: str, valid: Sequence[str]) -> str:
    """A sentence that lists the valid choices and the nearest spelling."""
    near = difflib.get_close_matches(received, valid, n=1, cutoff=0.6)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"{guess} Valid: {', '.join(valid)}."


def require(module: str, extra: str) -> Any:
    """Import ``module``, or say which extra to install.

    Raises:
        MissingExtra: The library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.split(".")[0] == error.name.split(".")[0]:
            raise MissingExtra(module.split(".")[0], extra) from None
        raise


def _load(target: str, seam: str, folder: Path | None) -> Any:
    module_name, _, attribute = target.partition(":")
    if folder is not None and str(folder) not in sys.path:
        # A plug-in lives beside the recipe; installed packages keep precedence
        # over it, so a recipe's folder can never shadow a library.
        sys.path.append(str(folder))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise RecipeError(
                f"{target!r}: module {module_name!r} needs {error.name!r}, which is not installed.",
                "Install the package that has it.",
            ) from error
        raise RecipeError(
            f"{target!r}: there is no module {module_name!r}.",
            f"Put {module_name}.py beside the recipe, or install the package that has it.",
        ) from None
    except PenstockError:
        raise
    except Exception as error:
        raise RecipeError(
            f"{target!r}: importing {module_name!r} failed: {type(error).__name__}: {error}",
            "Mend the module; try it with: python -c 'import MODULE'",
        ) from error
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise RecipeError(
            f"{target!r}: module {module_name!r} has no {attribute!r}."
            f"{did_you_mean(attribute, public)}"
        )
    return getattr(module, attribute)
