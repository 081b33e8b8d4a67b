"""Any OpenAI-compatible server, by lm-eval's ``local-completions`` and ``local-chat-completions``.

Items, prompts and scores are lm-eval's. The requests are made here, so that every
single answer is known to come from the model under evaluation, a server's failure
gets a sentence, and the key to it stays out of every message.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from penstock.child_process import free_port, running
from penstock.errors import EvaluationError, RecipeError
from penstock.evaluators import harness
from penstock.evaluators.asking import Asker
from penstock.evaluators.base import Evaluation, usable
from penstock.registry import require
from penstock.section import Place, Section

Api = Literal["completions", "chat"]
_NEED_LIKELIHOODS = {"loglikelihood", "loglikelihood_rolling", "multiple_choice"}


class EndpointOptions(Section):
    """Where the server is, and how to ask it."""

    base_url: Annotated[str, Place()] = Field(
        "http://127.0.0.1:8000/v1",
        pattern=r"^https?://[^\s]+$",
        description="Of the server's API, with its /v1. `{port}` is a free one, for `command`.",
    )
    model: Annotated[str, Place()] = Field(
        "{name}",
        min_length=1,
        description="What the server calls the model: `{name}` is the registered name, `{digest}` "
        "the digest of the files under evaluation.",
    )
    api: Api = Field(
        "completions",
        description="`completions` sends token ids, so prompts are those of `hf`; `chat` sends "
        "messages through the server's own chat template.",
    )
    identity: Literal["checked", "assumed"] = Field(
        "checked",
        description="`assumed` believes that any server at `base_url` serves the very files "
        "under evaluation.",
    )
    api_key_env: Annotated[str | None, Place()] = Field(
        None, description="The environment variable that holds the key."
    )
    command: Annotated[tuple[str, ...] | None, Place()] = Field(
        None,
        min_length=1,
        description="Starts a server for each evaluation and ends it afterwards. `{folder}` is "
        "the model's folder; `{port}`, `{name}` and `{digest}` as above.",
    )
    start_timeout_s: Annotated[float, Place()] = Field(
        600, gt=0, description="For `command`, until `base_url`/models answers."
    )
    num_concurrent: Annotated[int, Place()] = Field(
        4, ge=1, le=256, description="Requests under way at once."
    )
    timeout_s: Annotated[float, Place()] = Field(300, gt=0, description="For one answer.")
    max_tries: Annotated[int, Place()] = Field(
        5, ge=1, description="For one answer, while the server is out of reach or overloaded."
    )

    @model_validator(mode="after")
    def _port_is_known(self) -> EndpointOptions:
        if self.command is None and "{port}" in self.base_url:
            raise ValueError("base_url: {port} is for a server that command starts")
        return self


class EndpointEvaluator:
    """Any OpenAI-compatible server: one that runs, or one that is started for it."""

    Options: ClassVar[type[Section]] = EndpointOptions

    def __init__(self, options: EndpointOptions, folder: Path) -> None:
        self._options = options
        self._folder = folder

    def versions(self) -> dict[str, str]:
        """lm-eval's; the server's own is not known."""
        require("lm_eval", "evaluate")
        return {"lm_eval": importlib.metadata.version("lm_eval")}

    def run(self, evaluation: Evaluation, advance: harness.Bar) -> dict[str, Any]:
        """Measure the model behind the endpoint."""
        options = self._options
        if options.api == "chat" and not evaluation.apply_chat_template:
            raise RecipeError(
                "evaluate.backend.api: 'chat' sends messages through a chat template, and "
                "evaluate.apply_chat_template is false.",
                "Set apply_chat_template: true, or use api: completions.",
            )
        harness.quiet()
        require("lm_eval", "evaluate")
        require("tenacity", "evaluate")
        require("lm_eval.models.api_models", "evaluate")
        with self._server(evaluation) as (url, name):
            asker = Asker(
                url=url,
                model=name,
                digest=evaluation.digest,
                believed=options.identity == "assumed" or options.command is not None,
                named_by_digest="{digest}" in options.model,
                key=_key(options),
                timeout_s=options.timeout_s,
                max_tries=options.max_tries,
                num_concurrent=options.num_concurrent,
            )
            return self._measured(evaluation, advance, asker)

    def _measured(
        self, evaluation: Evaluation, advance: harness.Bar, asker: Asker
    ) -> dict[str, Any]:
        from penstock.evaluators import endpoint_models

        api = self._options.api
        model = endpoint_models.made(api, asker, evaluation.model, advance)
        model.check_identity()

        def check(types: Mapping[str, str]) -> None:
            needing = sorted(name for name, type_ in types.items() if type_ in _NEED_LIKELIHOODS)
            if needing and not model.gives_likelihoods():
                raise EvaluationError(*_no_likelihoods(api, asker.url, needing, types))

        with usable():
            return harness.evaluate(evaluation.asked, model, None, advance, check)

    @contextmanager
    def _server(self, evaluation: Evaluation) -> Iterator[tuple[str, str]]:
        """Where the server is and what it calls the model, while it is up."""
        options = self._options
        words = {
            "name": evaluation.name,
            "digest": evaluation.digest,
            "folder": str(evaluation.model),
            "port": str(free_port()) if options.command else "",
        }
        url, name = (_filled(text, words).rstrip("/") for text in (options.base_url, options.model))
        if options.command is None:
            yield url, name
            return
        command = [_filled(word, words) for word in options.command]
        if (self._folder / command[0]).is_file():
            command[0] = str(self._folder / command[0])
        with running(command) as server:
            _wait_until_up(url, server, options)
            yield url, name


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, meant in words.items():
        text = text.replace(f"{{{word}}}", meant)
    return text


def _key(options: EndpointOptions) -> str | None:
    if options.api_key_env is None:
        return None
    key = os.environ.get(options.api_key_env)
    if not key:
        raise RecipeError(
            f"evaluate.backend.api_key_env: the environment has no variable "
            f"{options.api_key_env!r}.",
            "Set it to the server's key; a key has no place in a recipe.",
        )
    return key


def _no_likelihoods(
    api: Api, url: str, needing: Sequence[str], types: Mapping[str, str]
) -> tuple[str, str]:
    """Message and hint for a server that does not say how likely a text is."""
    others = sorted(types.keys() - set(needing))
    what = "Chats give" if api == "chat" else f"{url} gives"
    return (
        f"{what} no log-likelihood of a given text (it needs /completions with token ids, `echo` "
        f"and `logprobs`), which these tasks ask for: {', '.join(needing)}. "
        f"Tasks that can be run: {', '.join(others) or 'none of those in the recipe'}.",
        "Keep tasks whose output_type is generate_until, use vLLM as the server, or evaluate in "
        "backend: hf or vllm.",
    )


def _wait_until_up(url: str, server: Any, options: EndpointOptions) -> None:
    """Wait for a server that was just started.

    Raises:
        EvaluationError: It ends, or takes too long.
    """
    import time

    httpx = require("httpx", "evaluate")
    deadline_s = time.monotonic() + options.start_timeout_s
    while True:
        try:
            if httpx.get(f"{url}/models", timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        ended = server.process.poll() is not None
        if ended or time.monotonic() > deadline_s:
            how = "ended" if ended else f"did not answer within {options.start_timeout_s:g} s"
            raise EvaluationError(
                f"evaluate.backend.command: the server {how} before {url}/models answered. "
                f"Its last words: {server.last_words()}",
                "Start it by hand with the same words and see.",
            )
        time.sleep(0.2)
