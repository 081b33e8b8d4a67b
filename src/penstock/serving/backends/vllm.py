"""Generation by vLLM: a ``vllm serve`` that is started for a model version, or one that runs.

It is sent token ids and says token ids. So templates, limits, stop strings and token
counts are the gateway's own, the same as in every other backend.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, model_validator

from penstock.errors import ServingError, Timeout
from penstock.section import Section
from penstock.serving.answer_text import AnswerText
from penstock.serving.backends.addresses import checked_url
from penstock.serving.backends.base import (
    Backend,
    Capability,
    Chunk,
    FinishReason,
    Generation,
    ModelFiles,
)
from penstock.serving.backends.openai import key_of
from penstock.serving.backends.upstream import Upstream, nonsense
from penstock.serving.backends.vllm_server import VllmServer

_LAUNCH = Path(__file__).with_name("vllm_launch.py")
# Who may set these could serve another model, to others, or run code that came with one.
_OURS = (
    "allowed-origins",
    "api-key",
    "api-server-count",
    "config",
    "generation-config",
    "grpc",
    "headless",
    "help",
    "hf-config-path",
    "hf-overrides",
    "host",
    "logits-processors",
    "middleware",
    "model",
    "port",
    "reasoning-parser-plugin",
    "revision",
    "root-path",
    "runner",
    "served-model-name",
    "ssl-ca-certs",
    "ssl-cert-reqs",
    "ssl-certfile",
    "ssl-keyfile",
    "tokenizer",
    "tokenizer-revision",
    "tool-parser-plugin",
    "tool-server",
    "trust-remote-code",
    "uds",
    "worker-cls",
    "worker-extension-cls",
)
_ASK_TIMEOUT_S = 5.0
_REASONS: dict[object, FinishReason] = {"stop": "stop", "length": "length", "repetition": "stop"}


def _checked_args(args: tuple[str | int | float, ...]) -> tuple[str | int | float, ...]:
    for arg in args:
        word = str(arg)
        if not word.startswith("-") or re.fullmatch(r"-\d.*", word):
            continue
        name = re.split(r"[=.]", word.lstrip("-"), maxsplit=1)[0].replace("_", "-").lower()
        # argparse takes a beginning for the whole.
        taken = next((one for one in _OURS if name and one.startswith(name)), None)
        if taken is not None:
            raise ValueError(f"{word!r}: --{taken} is set by Penstock")
    return args


class VllmOptions(Section):
    """A server to start, or one that runs."""

    python: str | None = Field(
        None,
        min_length=1,
        description="The Python that has vllm, relative to the recipe; null is this one.",
    )
    args: Annotated[tuple[str | int | float, ...], AfterValidator(_checked_args)] = Field(
        (), description="Further words for `vllm serve`: [--dtype, float32]."
    )
    start_timeout_s: float = Field(
        600.0, gt=0, description="Until a server that was started has loaded the model."
    )
    url: Annotated[str, AfterValidator(checked_url)] | None = Field(
        None, description="Of a `vllm serve` that runs, with its /v1; then none is started."
    )
    served_name: str | None = Field(
        None,
        min_length=1,
        description="What the server at `url` calls the model. Null is the model's name here, "
        "its version and digest: NAME-vVERSION-DIGEST, the digest's first 8 digits.",
    )
    api_key_env: str | None = Field(
        None, min_length=1, description="The environment variable with the key for `url`."
    )
    timeout_s: float = Field(30.0, gt=0, description="For the next token.")

    @model_validator(mode="after")
    def _one_of_two(self) -> VllmOptions:
        ours = [name for name in ("python", "args") if getattr(self, name)]
        theirs = [name for name in ("served_name", "api_key_env") if getattr(self, name)]
        if self.url is not None and ours:
            raise ValueError(f"{ours[0]} is for a server that is started here, not for url")
        if self.url is None and theirs:
            raise ValueError(f"{theirs[0]} is for a server that runs: set url")
        return self


class VllmBackend(Backend):
    """One model version in a vLLM."""

    Options = VllmOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"generate"})
    elsewhere: ClassVar[bool] = True

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        self._options = VllmOptions.model_validate(files.options)
        self._name = self._options.served_name or files.label
        self._server: VllmServer | None = None
        self._upstream: Upstream | None = None

    def load(self) -> None:
        """Start a server or find the one that runs, and let it write a token."""
        text = self._files.text
        if self._options.url is not None:
            self._upstream = self._connected(self._options.url, key_of(self._options.api_key_env))
            self._check_name(self._options.url)
        else:
            self._server = self._started()
        try:
            _run(self._warm_up(next(iter(text.encode("a")), 0)))
        except BaseException:
            self.close()
            raise

    async def generate(self, request: Generation) -> AsyncGenerator[Chunk, None]:
        """Stream one answer. Closing the iterator closes the connection, and vLLM stops."""
        answer = _Answer(request, self._files)
        stream = self._reached().stream(
            "/completions", self._asked(request), lambda: answer.reason is not None
        )
        async with contextlib.aclosing(stream):
            async for events in stream:
                chunk = answer.feed(events)
                if chunk.text or chunk.token_ids:
                    yield chunk
                if answer.cut:
                    break
        yield answer.last()

    async def healthy(self) -> bool:
        """Whether the server is up and well."""
        if self._server is not None and self._server.url is None:
            return False
        return self._upstream is not None and self._reached().look()

    def close(self) -> None:
        """End the server, if it is ours."""
        if self._upstream is not None:
            self._upstream.close()
        if self._server is not None:
            self._server.close()

    def _connected(self, url: str, key: str | None) -> Upstream:
        return Upstream(
            url,
            key,
            timeout_s=self._options.timeout_s,
            max_concurrency=self._files.max_concurrency,
        )

    def _reached(self) -> Upstream:
        """The server, wherever it is now.

        Raises:
            ServingError: It is not up.
        """
        if self._upstream is None:
            raise ServingError("The model is not loaded.")
        if self._server is not None:
            if self._server.url is None:
                raise ServingError("vLLM has ended and is being started again.")
            if self._server.url != self._upstream.url:
                self._upstream.move(self._server.url)
        return self._upstream

    def _started(self) -> VllmServer:
        files, options = self._files, self._options
        if not any(files.path.glob("*.safetensors")):
            # Other weight files are pickles, and a pickle may run code.
            raise ServingError(f"{files.path} holds no safetensors weights.")
        python = sys.executable
        if options.python is not None:
            python = str(files.recipe_folder / options.python)
        server = VllmServer(
            [
                *(python, "-I", str(_LAUNCH), "serve", str(files.path.absolute())),
                *("--served-model-name", self._name, "--host", "127.0.0.1"),
                # What a request does not say is ours to say, not the model folder's.
                *("--generation-config", "vllm"),
                *("--uvicorn-log-level", "warning", "--disable-uvicorn-access-log"),
                *map(str, options.args),
            ],
            self._name,
            # Every process of a gateway has a vLLM of its own.
            files.cache / f"vllm-{os.getpid()}.log",
            options.start_timeout_s,
            lambda url: self._name in self._models(url, server.key),
        )
        try:
            server.start()
        except ServingError as error:
            if "No module named" in error.message:
                raise ServingError(
                    f"{python} cannot run vLLM. {error.message}", _NO_VLLM
                ) from error
            raise
        if server.url is None:
            raise ServingError(f"vLLM for {self._name} ended as soon as it was up.")
        self._upstream = self._connected(server.url, server.key)
        return server

    def _check_name(self, url: str) -> None:
        found = self._models(url, key_of(self._options.api_key_env), must_answer=True)
        if self._name not in found:
            raise ServingError(
                f"{url} serves {', '.join(found) or 'nothing'}, not {self._name!r}.",
                "Start it with --served-model-name, or set served_name.",
            )

    def _models(self, url: str, key: str | None, must_answer: bool = False) -> list[str]:
        """What a server says that it serves; nothing while it does not answer.

        Raises:
            ServingError: It must answer, and does not.
        """
        upstream = self._connected(url, key)

        async def ask() -> Any:
            try:
                async with asyncio.timeout(_ASK_TIMEOUT_S):
                    return await upstream.get("/models")
            except TimeoutError:
                raise Timeout(f"{url} did not answer within {_ASK_TIMEOUT_S:g} s.") from None
            finally:
                await upstream.aclose()

        try:
            listed = _run(ask())
        except ServingError as error:
            if must_answer:
                raise ServingError(f"{url} cannot be asked: {error.message}") from error
            return []
        data = listed.get("data") if isinstance(listed, dict) else None
        rows = data if isinstance(data, list) else []
        return [str(row.get("id")) for row in rows if isinstance(row, dict)]

    async def _warm_up(self, token_id: int) -> None:
        request = Generation((token_id,), 1, temperature=0.0)
        try:
            async with contextlib.aclosing(self.generate(request)) as chunks:
                async for _ in chunks:
                    pass
        finally:
            await self._reached().aclose()

    def _asked(self, request: Generation) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._name,
            "prompt": list(request.prompt_ids),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            # A server that somebody else started may have other ideas.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            # The model's ends are those that we know, in every backend.
            "ignore_eos": True,
            "stop_token_ids": sorted(self._files.text.eos_ids),
            "stream": True,
            "return_token_ids": True,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.seed is not None:
            body["seed"] = request.seed
        return body


_NO_VLLM = (
    "Name the interpreter that has it in the backend's `python`; scripts/make-env.sh vllm makes "
    "one for CPUs in .venvs/vllm/bin/python."
)


def _run(asking: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a thread of its own: a notebook's has an event loop already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, asking).result()


class _Answer:
    """One answer as its tokens come.

    Attributes:
        reason: Why vLLM ended it, once it has.
        cut: It ends here: a stop string, or as many tokens as were asked for.
    """

    def __init__(self, request: Generation, files: ModelFiles) -> None:
        self._text = files.text
        self._answer = AnswerText(self._text, request.prompt_ids, request.stop)
        self._room = request.max_tokens
        self.reason: FinishReason | None = None
        self.cut = False

    def feed(self, events: list[Any]) -> Chunk:
        """Take events that came together.

        Raises:
            ServingError: They are no part of an answer.
        """
        ids: list[int] = []
        for event in events:
            if self.reason is None:
                ids += self._new_ids(event)
        kept = ids[: self._room]
        text, used = self._answer.feed(kept)
        self._room -= used
        if self._answer.stopped:
            self.cut = True
        elif len(ids) > len(kept):
            self.cut, self.reason = True, "length"
        return Chunk(text, tuple(kept[:used]))

    def last(self) -> Chunk:
        """What is left of the text, and the end.

        Raises:
            ServingError: It broke off.
        """
        if self._answer.stopped:
            return Chunk("", (), "stop")
        if self.reason is None:
            raise ServingError("vLLM broke off its answer.")
        text = self._answer.flush()
        return Chunk(text, (), "stop" if self._answer.stopped else self.reason)

    def _new_ids(self, event: Any) -> list[int]:
        choices = event.get("choices") if isinstance(event, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            if isinstance(event, dict) and "usage" in event and not event.get("error"):
                return []
            raise nonsense()
        ids = choice.get("token_ids")
        if ids is None and not choice.get("text"):
            ids = []
        if not isinstance(ids, list) or not all(self._is_token(one) for one in ids):
            raise ServingError("This vLLM does not say token ids; it is too old, or none.")
        reason = choice.get("finish_reason")
        if reason is not None:
            self.reason = _REASONS.get(reason)
            if self.reason is None:
                raise ServingError("vLLM broke off its answer.")
            if self.reason == "stop" and ids and ids[-1] in self._text.eos_ids:
                ids = ids[:-1]
        return ids

    def _is_token(self, one: object) -> bool:
        return type(one) is int and 0 <= one < self._text.vocab_size
