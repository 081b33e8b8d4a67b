"""lm-eval's models behind an OpenAI-compatible server, with requests by ``Asker``.

Imported once lm-eval is known to be installed.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.models.utils import has_bos_prefix, resolve_max_length

from penstock.errors import EvaluationError
from penstock.evaluators.asking import Asker, Refused
from penstock.evaluators.harness import Bar

# OpenAI's own limit; the rest are looked for in the answer.
_MAX_STOPS = 4


def made(api: str, asker: Asker, folder: Path, bar: Bar) -> Completions | Chat:
    """The model as lm-eval takes it."""
    kind = Completions if api == "completions" else Chat
    return kind(asker, folder, bar)


class _Asking:
    """What both kinds share: requests by ``Asker``, as many at once as it allows."""

    path: str
    asker: Asker
    bar: Bar

    def _settings(self, asker: Asker) -> dict[str, Any]:
        return {
            "model": asker.model,
            "base_url": asker.url,
            "batch_size": 1,  # one prompt a request; the server makes batches of them
            "num_concurrent": asker.num_concurrent,
            "max_retries": 1,  # the asker does that
            "timeout": int(asker.timeout_s),
        }

    def model_call(self, messages: Any, *, generate: bool = True, **more: Any) -> Any:
        """One request, for lm-eval's loop over single ones."""
        body = self._body(messages, generate, more.get("gen_kwargs"))
        return asyncio.run(self._alone(body))

    async def _alone(self, body: dict[str, Any]) -> dict[str, Any]:
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self.asker.timeout_s)
        ) as session:
            return await self.asker.ask(session, self.path, body)

    async def amodel_call(
        self, session: Any, sem: asyncio.Semaphore, messages: Any, *, generate: bool = True,
        ctxlens: list[int] | None = None, **more: Any,
    ) -> Any:  # fmt: skip
        """One request of many that are under way."""
        body = self._body(messages, generate, more.get("gen_kwargs"))
        async with sem:
            outputs = await self.asker.ask(session, self.path, body)
        self.bar(1)
        if generate:
            return ["" if text is None else text for text in self.parse_generations(outputs)]  # type: ignore[attr-defined]
        return self.parse_logprobs(outputs, tokens=messages, ctxlens=ctxlens)  # type: ignore[attr-defined]

    async def get_batched_requests(self, requests: list[Any], *args: Any, **more: Any) -> Any:
        """Count what is asked at once, which lm-eval shows with a bar of its own."""
        self.bar.expect(len(requests))
        return await super().get_batched_requests(requests, *args, **more)  # type: ignore[misc]

    def _body(self, messages: Any, generate: bool, gen_kwargs: Any) -> dict[str, Any]:
        body: dict[str, Any] = self._create_payload(  # type: ignore[attr-defined]
            self.create_message(messages),  # type: ignore[attr-defined]
            generate=generate,
            gen_kwargs=dict(gen_kwargs or {}),
            seed=self._seed,  # type: ignore[attr-defined]
        )
        stops = body.pop("stop", None)
        if stops:
            body["stop"] = [stop for stop in stops if stop][:_MAX_STOPS]
        return body

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Answers, cut at every text that ends one: a server looks for four at most."""
        answers = super().generate_until(requests, disable_tqdm)  # type: ignore[misc]
        return [
            _cut(answer, request.args[1].get("until") or [])
            for request, answer in zip(requests, answers, strict=True)
        ]

    def check_identity(self) -> None:
        """Ask for one token, to see that the right model is there at all.

        Raises:
            EvaluationError: It is not.
        """
        asyncio.run(self._alone(self._probe()))

    def _probe(self) -> dict[str, Any]:
        raise NotImplementedError


class Completions(_Asking, LocalCompletionsAPI):  # type: ignore[misc]
    """Token ids to ``/completions``: prompts are exactly those that ``hf`` would see."""

    path = "/completions"

    def __init__(self, asker: Asker, folder: Path, bar: Bar) -> None:
        from transformers import AutoConfig

        self.asker, self.bar = asker, bar
        length = resolve_max_length(AutoConfig.from_pretrained(folder, local_files_only=True))
        super().__init__(
            tokenizer=str(folder),
            tokenizer_backend="huggingface",
            max_length=length,
            **self._settings(asker),
        )

    def tok_encode(
        self,
        string: Any,
        left_truncate_len: int | None = None,
        add_special_tokens: bool | None = None,
        **_: Any,
    ) -> Any:
        """Token ids by the rules of lm-eval's ``hf``, which are not those of its servers."""
        if not isinstance(string, str):
            return [self.tok_encode(one, left_truncate_len) for one in string]
        if has_bos_prefix(string, self.tokenizer.bos_token):
            ids = self.tokenizer.encode(string, add_special_tokens=False)
        else:
            ids = self.tokenizer.encode(string)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _create_payload(self, messages: Any, generate: bool = False, **more: Any) -> dict[str, Any]:
        body: dict[str, Any] = super()._create_payload(messages, generate=generate, **more)
        if body["max_tokens"] >= self.max_length:
            raise EvaluationError(
                f"A task asks for {body['max_tokens']} new tokens, and the model reads "
                f"{self.max_length + 1} in all.",
                "Set max_gen_toks in the task's generation_kwargs.",
            )
        return body | {"prompt": messages[0]}

    def parse_logprobs(
        self, outputs: Any, tokens: Any = None, ctxlens: Any = None, **_: Any
    ) -> list[tuple[float, bool]]:
        """How likely each prompt's last part is, from what the server echoes of it."""
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return [
            _likelihood(output, start, len(prompt))
            for output, prompt, start in zip(outputs, tokens, ctxlens, strict=True)
        ]

    def gives_likelihoods(self) -> bool:
        """Whether the server says how likely the tokens of a prompt are."""
        prompt = [self.prefix_token_id, *self.tok_encode("one two")]
        body = self._body([prompt], False, None)
        try:
            self.parse_logprobs(asyncio.run(self._alone(body)), [prompt], [1])
        except (Refused, _NoLikelihoods):
            return False
        return True

    def _probe(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": [self.prefix_token_id, *self.tok_encode("one two")],
            "max_tokens": 1,
            "temperature": 0,
        }


class Chat(_Asking, LocalChatCompletion):  # type: ignore[misc]
    """Messages to ``/chat/completions``: the server's own chat template makes the prompt."""

    path = "/chat/completions"

    def __init__(self, asker: Asker, folder: Path, bar: Bar) -> None:
        self.asker, self.bar = asker, bar
        super().__init__(tokenizer_backend=None, tokenized_requests=False, **self._settings(asker))

    def gives_likelihoods(self) -> bool:
        """Never: a chat cannot be echoed."""
        return False

    def _probe(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": "one two"}],
            "max_tokens": 1,
            "temperature": 0,
        }


class _NoLikelihoods(EvaluationError):
    """The server's answer lacks them."""


def _likelihood(output: Any, start: int, end: int) -> tuple[float, bool]:
    """Sum of log-probabilities from token ``start`` to ``end``, and whether each is the likeliest.

    lm-eval's own counts from the answer's end, and one token wrong if the server
    generates none.
    """
    try:
        logprobs = output["choices"][0]["logprobs"]
        values = logprobs["token_logprobs"][start:end]
        tops = logprobs["top_logprobs"][start:end]
        if len(values) != end - start or len(tops) != end - start:
            raise ValueError
        greedy = all(value >= max(top.values()) for value, top in zip(values, tops, strict=True))
        return float(sum(values)), greedy
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        shown = json.dumps(output, default=str)[:200]
        raise _NoLikelihoods(
            f"The server echoed a prompt without the log-probabilities of its tokens: {shown}",
            "Use a server that gives them, such as vLLM.",
        ) from error


def _cut(answer: str, until: str | list[str]) -> str:
    for stop in [until] if isinstance(until, str) else until:
        if stop:
            answer = answer.split(stop)[0]
    return answer
