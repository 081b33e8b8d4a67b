"""One prompt through the serving backend, before a version may be promoted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from penstock import registry
from penstock.conversions import conversion, conversions
from penstock.errors import MissingExtra, PenstockError, RecipeError, ServingError
from penstock.recipe import Recipe
from penstock.serving.backends.base import Generation, ModelFiles, Scaling
from penstock.store import Store

_PROMPT = "Hello"
_NUM_TOKENS = 8


def try_serving(recipe: Recipe, store: Store, folder: Path, digest: str) -> None:
    """Load a model as the gateway will, and let it answer one prompt.

    What loading derives from the model is kept where the gateway looks for it.

    Args:
        recipe: Its ``serve`` section names the backend.
        store: Where converted models are kept.
        folder: The model's files.
        digest: Of those files.

    Raises:
        ServingError: It cannot be loaded, or gives no answer.
        RecipeError: There is no such backend, or it does something else.
        MissingExtra: What the backend needs is not installed here.
    """
    served = recipe.served.of_registered(recipe.model_name)
    if served is None:
        return  # this recipe trains a model that another gateway serves
    name = served.backend_name
    backend_class = registry.resolve("backends", name, recipe.folder)
    if served.task not in backend_class.capabilities:
        raise RecipeError(f"serve.models: the {name} backend cannot {served.task}.")
    cache = conversion(conversions(store), digest)
    files = ModelFiles(
        folder,
        cache,
        served.options,
        label=f"trial-{digest[:8]}",
        labels=tuple(served.labels),
        task=served.task,
        scaling=Scaling(num_cpus=served.resources.num_cpus, num_gpus=served.resources.num_gpus),
        recipe_folder=recipe.folder or Path(),
    )
    try:
        backend = backend_class(files)
        backend.load()
        try:
            _answer(backend, files, recipe.serve.request_timeout_s)
        finally:
            backend.close()
    except (MissingExtra, RecipeError):
        raise
    except Exception as error:
        raise ServingError(_said(name, error), _HINT) from error


_HINT = (
    "Nothing was registered or promoted, and what serves keeps serving. Mend the backend under "
    "serve.models and run again; training and evaluation are not repeated."
)


def _said(name: str, error: Exception) -> str:
    why = error.message if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
    return f"The model passed the gate, but {name} cannot serve it: {why}"


def _answer(backend: Any, files: ModelFiles, timeout_s: float) -> None:
    """One short greedy answer; an empty one counts, since what is said is the gate's matter."""
    if files.task == "classify":
        _run(_labelled(backend), timeout_s)
        return
    text = files.text
    if text.tokenizer.chat_template:
        prompt = text.encode_chat([{"role": "user", "content": _PROMPT}])
    else:
        prompt = text.encode(_PROMPT)
    request = Generation(prompt, _NUM_TOKENS, temperature=0.0)

    async def answer() -> None:
        reasons = [chunk.finish_reason async for chunk in backend.generate(request)]
        if not reasons or reasons[-1] is None:
            raise ServingError("It ended its answer without saying why.")

    _run(answer(), timeout_s)


async def _labelled(backend: Any) -> None:
    scores, _ = await backend.classify([_PROMPT])
    if scores.shape != (1, len(backend.labels)):
        raise ServingError(
            f"It gave {scores.shape} probabilities for {len(backend.labels)} labels."
        )


def _run(answer: Coroutine[Any, Any, None], timeout_s: float) -> None:
    # A notebook has an event loop of its own in this thread.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, asyncio.wait_for(answer, timeout_s)).result()
