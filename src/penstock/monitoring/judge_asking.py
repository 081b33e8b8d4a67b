"""Asking a judge: within the budget, twice at most, and never guessing what it meant."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.errors import RecipeError
from penstock.evaluators.asking import Asker, Metered
from penstock.judge_section import JudgeSection
from penstock.ledger.judge_budget import JudgeBudget
from penstock.monitoring.judge_prompts import Turns, Verdict, messages, verdict
from penstock.serving.prices import Price

# No tokenizer makes more tokens of a text than it has bytes; a chat template adds a few.
_TEMPLATE_TOKENS = 64
_TIMES = 2


class BudgetSpent(Exception):
    """Nothing more may be asked today."""


@dataclass(frozen=True)
class Reply:
    """What became of a question.

    Attributes:
        verdict: None if the judge gave none, and will not be asked again.
        note: Why there is none.
        num_asked: How often it was asked.
        prompt_tokens: Read, as its server says.
        completion_tokens: Written.
        nanousd: What that costs.
    """

    verdict: Verdict | None
    note: str
    num_asked: int
    prompt_tokens: int
    completion_tokens: int
    nanousd: int


class Asking:
    """Asks one judge.

    Args:
        section: Which, and how.
        budget: What may be asked today.

    Raises:
        RecipeError: The environment does not have the server's key.
    """

    def __init__(self, section: JudgeSection, budget: JudgeBudget) -> None:
        self._section = section
        self._budget = budget
        self._price = Price.model_validate(section.price.model_dump())
        self._asker = Asker(
            url=section.base_url,
            model=section.model,
            digest=None,
            believed=True,
            named_by_digest=False,
            key=_key(section),
            timeout_s=section.timeout_s,
            max_tries=section.max_tries,
            num_concurrent=section.num_concurrent,
            settings="observe.judge",
        )

    async def ask(self, session: Any, turns: Turns, answers: tuple[str, ...]) -> Reply:
        """Ask one question; once more if the reply is no verdict.

        Args:
            session: Of aiohttp, with the section's timeout.
            turns: What was asked.
            answers: To mark, or to compare.

        Raises:
            BudgetSpent: There is not so much left today; nothing was sent.
            EvaluationError: The server is away, goes on failing, or refuses.
        """
        read = written = cost = 0
        note = ""
        for nth in range(_TIMES):
            body = self._body(turns, answers, again=nth > 0)
            purse = _Purse(self._budget, self._most(body))
            answer = await self._asker.ask(session, "/chat/completions", body, purse)
            used = _usage(answer)
            cost += await purse.pay(None if used is None else self._price.nanousd(*used))
            read, written = (a + b for a, b in zip((read, written), used or (0, 0), strict=True))
            text = _text(answer)
            found = None if text is None else verdict(text, len(answers))
            if found is not None:
                return Reply(found, "", nth + 1, read, written, cost)
            note = _why_none(answer, text)
        return Reply(None, note, _TIMES, read, written, cost)

    def _body(self, turns: Turns, answers: tuple[str, ...], again: bool) -> dict[str, Any]:
        section = self._section
        body: dict[str, Any] = {
            "model": section.model,
            "messages": messages(section.criteria, turns, answers, again),
            section.reply_limit: section.max_reply_tokens,
        }
        return body if section.temperature is None else body | {"temperature": section.temperature}

    def _most(self, body: Mapping[str, Any]) -> int:
        """What one try may cost at most, in billionths of a dollar."""
        read = sum(
            len(one["content"].encode(errors="replace")) + _TEMPLATE_TOKENS
            for one in body["messages"]
        )
        return self._price.nanousd(read, self._section.max_reply_tokens)


@dataclass
class _Purse(Metered):
    """What one question has taken of the budget; each try takes anew."""

    budget: JudgeBudget
    most: int
    days: list[str] = field(default_factory=list)

    async def begin(self) -> None:
        day = await asyncio.to_thread(self.budget.take, self.most)
        if day is None:
            raise BudgetSpent
        self.days.append(day)

    async def failed(self) -> None:
        """The server has not answered it, and will not ask for money."""
        await asyncio.to_thread(self.budget.give_back, self.days.pop(), 1, self.most)

    async def pay(self, nanousd: int | None) -> int:
        """Give back what the answered try did not take; None if nobody knows."""
        cost = self.most if nanousd is None else nanousd
        if cost != self.most:
            await asyncio.to_thread(self.budget.give_back, self.days[-1], 0, self.most - cost)
        return cost


def _key(section: JudgeSection) -> str | None:
    if section.api_key_env is None:
        return None
    key = os.environ.get(section.api_key_env)
    if not key:
        raise RecipeError(
            f"observe.judge.api_key_env: the environment has no variable {section.api_key_env!r}.",
            "Set it to the server's key; a key has no place in a recipe.",
        )
    return key


def _usage(answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """Tokens read and written; None if the server does not say, or says what cannot be."""
    told = answer.get("usage")
    if not isinstance(told, Mapping):
        return None
    read, written = _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))
    return None if read is None or written is None else (read, written)


def _count(told: object) -> int | None:
    if isinstance(told, int) and not isinstance(told, bool) and 0 <= told < 2**40:
        return told
    return None


def _text(answer: Mapping[str, Any]) -> str | None:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _why_none(answer: Mapping[str, Any], text: str | None) -> str:
    if text is None or not text.strip():
        return "the reply holds no text"
    choice = answer["choices"][0]
    if choice.get("finish_reason") == "length":
        return "the reply was cut off: raise observe.judge.max_reply_tokens"
    return "the reply is not the JSON that was asked for"
