"""Rates and budgets of API keys: reserve before a request, settle after it.

::

    async with budgets.reserved(key, "support", prompt_tokens, max_tokens) as reservation:
        ...                                        # refused requests never come here
        reservation.used(prompt_tokens, completion_tokens)    # as often as it grows

One task and one thread of each gateway process talk to the ledger. Requests wait for them
only when what the process has drawn does not suffice, and then all that wait share one
transaction. Keys without limits never wait: what they use is reported once a second.
docs/decisions/0017-budgets.md says why nothing can be overspent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from penstock.errors import InsufficientQuota, LedgerError, NotReady, Overloaded, ServingError
from penstock.ledger.accounts import Accounts, Batch, Grant, Usage, UsageId, Wish, new_holder
from penstock.ledger.amounts import NOTHING, Amounts
from penstock.ledger.api_keys import ApiKey
from penstock.ledger.periods import day_of
from penstock.serving.prices import PriceList
from penstock.serving.purses import Purse, Purses

if TYPE_CHECKING:
    from penstock.serving.routes import ServedVersion

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_ROUND_S = 1.0
# Shows that this process lives, and may give back what it holds.
_SHOW_LIFE_S = 5.0
_MAX_WAITING = 1_024
_FAREWELL_ATTEMPTS = 3
_MAX_MODEL_CHARS = 200
# More than the templates of current models put around a turn.
_TEMPLATE_TOKENS = 16


def at_most_tokens(texts: Sequence[str]) -> int:
    """What a prompt has at most, for a model whose tokenizer is elsewhere.

    A token stands for at least one byte, and a template adds a few for each turn.
    """
    num_bytes = sum(len(text.encode(errors="replace")) for text in texts)
    return num_bytes + _TEMPLATE_TOKENS * (len(texts) + 1)


class Reservation:
    """What one request may use, and what it has used so far.

    Attributes:
        key: Whose it is; None when the gateway has no keys.
        prompt_tokens: Used so far.
        completion_tokens: Used so far.
        model: What answered.
        served: Which version of it; None where that is not known.
    """

    def __init__(
        self,
        key: ApiKey | None,
        model: str,
        prompt_tokens: int,
        max_tokens: int,
        served: ServedVersion | None = None,
    ) -> None:
        self.key = key
        self.model = model
        self.served = served
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._limits = (prompt_tokens, max_tokens)
        self._purse: Purse | None = None
        self._need = NOTHING
        self._has_warned = False

    def used(self, prompt_tokens: int, completion_tokens: int, model: str | None = None) -> None:
        """Say what has been used until now; the last word counts, also when the client leaves.

        What goes beyond the reservation is not counted, so a backend that lies cannot
        overspend a budget; it is logged.

        Args:
            prompt_tokens: Read by the model.
            completion_tokens: Written by the model.
            model: Which one, if it was a fallback that the reservation was told of.
        """
        most_prompt, most_completion = self._limits
        self.prompt_tokens = min(max(prompt_tokens, 0), most_prompt)
        self.completion_tokens = min(max(completion_tokens, 0), most_completion)
        self.model = model or self.model
        is_too_much = prompt_tokens > most_prompt or completion_tokens > most_completion
        if is_too_much and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s used %d + %d tokens where %d + %d were reserved; the rest is not counted",
                self.model,
                prompt_tokens,
                completion_tokens,
                most_prompt,
                most_completion,
            )


class _Waiter(NamedTuple):
    key: ApiKey
    need: Amounts
    served: asyncio.Future[Purse]


class Budgets:
    """Rates, budgets and usage of one gateway process.

    Args:
        accounts: In the ledger.
        prices: What the models cost.
        round_s: How often usage is reported, and what is not needed is given back.

    Attributes:
        prices: As given.
    """

    def __init__(self, accounts: Accounts, prices: PriceList, round_s: float = _ROUND_S) -> None:
        self._accounts = accounts
        self.prices = prices
        self._round_s = round_s
        self._holder = new_holder()
        self._purses = Purses()
        self._waiting: dict[str, list[_Waiter]] = {}
        self._served_now: dict[str, list[_Waiter]] = {}
        self._work = asyncio.Event()
        self._visited_s = 0.0
        self._is_broken = False
        self._is_closing = False

    # -- requests ------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def reserved(
        self,
        key: ApiKey | None,
        model: str,
        prompt_tokens: int,
        max_tokens: int,
        fallbacks: Sequence[str] = (),
        served: ServedVersion | None = None,
    ) -> AsyncIterator[Reservation]:
        """Reserve the most that a request can use; settle what it used when the block ends.

        Args:
            key: Who asks; None without keys: then usage is only reported.
            model: Which model.
            prompt_tokens: What the prompt has, or at most has.
            max_tokens: What the answer has at most; 0 for models that do not generate.
            fallbacks: Models that may answer instead; the dearest is reserved for.
            served: Which version answers, for the books.

        Raises:
            RateLimited: The key asks for more than its rate.
            InsufficientQuota: The key's budget does not reach.
            InvalidKey: The key was revoked or has expired.
            NotReady: The ledger does not answer, and what was drawn is used up.
        """
        reservation = Reservation(key, model, prompt_tokens, max_tokens, served)
        if key is not None:
            reservation._need = self._need(key, (model, *fallbacks), prompt_tokens, max_tokens)
            reservation._purse = await self._reserve(key, reservation._need)
        try:
            yield reservation
        finally:
            self._settle(reservation)

    def _need(
        self, key: ApiKey, models: Sequence[str], prompt_tokens: int, max_tokens: int
    ) -> Amounts:
        """What a request takes of each limit that the key has."""
        tokens = prompt_tokens + max_tokens
        nanousd = 0
        if key.budget_nanousd is not None:
            unpriced = [model for model in models if model not in self.prices]
            if unpriced:
                raise InsufficientQuota(
                    f"The model {unpriced[0][:_MAX_MODEL_CHARS]!r} has no price, and this API "
                    "key has a budget of money.",
                    "Ask for another model; its price may be 0, but it must be set.",
                )
            nanousd = max(self.prices.nanousd(m, prompt_tokens, max_tokens) for m in models)
        return Amounts(
            requests=0 if key.requests_per_min is None else 1,
            rate_tokens=0 if key.tokens_per_min is None else tokens,
            tokens=0 if key.budget_tokens is None else tokens,
            nanousd=nanousd,
        )

    async def _reserve(self, key: ApiKey, need: Amounts) -> Purse | None:
        if not key.has_rate and not key.has_budget:
            return None
        # Not before those that wait, or a large request would wait for ever.
        if key.id not in self._waiting and key.id not in self._served_now:
            purse = self._purses.reserve(key, need, time.monotonic())
            if purse is not None:
                return purse
        return await self._wait(key, need)

    async def _wait(self, key: ApiKey, need: Amounts) -> Purse:
        if self._is_closing:
            raise NotReady("The server is shutting down.", "Try another one.")
        waiting = self._waiting.setdefault(key.id, [])
        if len(waiting) >= _MAX_WAITING:
            raise Overloaded(f"{len(waiting)} requests of this API key wait for its budget.")
        served: asyncio.Future[Purse] = asyncio.get_running_loop().create_future()
        waiting.append(_Waiter(key, need, served))
        self._work.set()
        try:
            return await served
        except asyncio.CancelledError:
            # It may have been served in the very moment in which its client left.
            if served.done() and not served.cancelled() and served.exception() is None:
                served.result().settle(need, NOTHING)
            raise

    def _settle(self, reservation: Reservation) -> None:
        """Never waits, so that nothing can come between the end of a request and this."""
        prompt, completion = reservation.prompt_tokens, reservation.completion_tokens
        model = reservation.model[:_MAX_MODEL_CHARS]
        nanousd = self.prices.nanousd(reservation.model, prompt, completion)
        need, purse, key = reservation._need, reservation._purse, reservation.key
        if purse is not None:
            tokens = prompt + completion
            most = Amounts(need.requests, tokens, tokens, nanousd)
            purse.settle(need, most.least(need))
        if prompt + completion > 0:
            usage_id = UsageId(day_of(time.time()), "" if key is None else key.id, model)
            if (served := reservation.served) is not None:
                usage_id = usage_id._replace(version=served.version, run_id=served.run_id)
            self._purses.note(usage_id, Usage(1, prompt, completion, nanousd))

    # -- the ledger ------------------------------------------------------------

    def start(self) -> None:
        """Begin to report; call it on the event loop."""
        self._thread = ThreadPoolExecutor(1, "budgets")
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Report everything and give everything back; call it when no request is in flight."""
        self._is_closing = True
        self._work.set()
        await self._task
        self._purses.end_round(time.monotonic(), everything=True)
        for _ in range(_FAREWELL_ATTEMPTS):
            await self._visit(shows_life=False)
        try:
            await self._in_thread(lambda: self._accounts.leave(self._holder))
        except Exception as error:
            logger.error("Usage of the last moments may not be in the ledger: %s", error)
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        round_s = time.monotonic() + self._round_s
        while not self._is_closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(round_s - time.monotonic(), 0.0)):
                    await self._work.wait()
            self._work.clear()
            if time.monotonic() >= round_s:
                round_s = time.monotonic() + self._round_s
                self._purses.end_round(time.monotonic())
            await self._visit()

    async def _visit(self, shows_life: bool = True) -> None:
        """Tell the ledger what there is to tell, and draw for all who wait."""
        self._served_now, self._waiting = self._waiting, {}
        needs = {
            key_id: [one.need for one in waiting if not one.served.done()]
            for key_id, waiting in self._served_now.items()
        }
        wishes = self._purses.wishes(needs, time.monotonic())
        batch = self._purses.cut()
        try:
            if batch is not None or wishes or (shows_life and self._must_show_life()):
                await self._ask(batch, wishes)
        except Exception as error:
            self._broke(error, wishes)
        finally:
            self._served_now = {}

    def _must_show_life(self) -> bool:
        is_late = time.monotonic() - self._visited_s > _SHOW_LIFE_S
        return is_late and self._purses.holds_anything

    async def _ask(self, batch: Batch | None, wishes: Sequence[Wish]) -> None:
        grants = await self._in_thread(lambda: self._accounts.visit(self._holder, batch, wishes))
        if self._is_broken:
            logger.info("Budgets can be checked again")
        self._is_broken = False
        now_s = self._visited_s = time.monotonic()
        self._purses.absorb(grants, now_s)
        for key_id, waiting in self._served_now.items():
            for waiter in waiting:
                self._serve(waiter, grants[key_id], now_s)

    def _serve(self, waiter: _Waiter, grant: Grant, now_s: float) -> None:
        if waiter.served.done():  # its client has left
            return
        try:
            waiter.served.set_result(self._purses.granted(waiter.key, waiter.need, grant, now_s))
        except ServingError as error:
            waiter.served.set_exception(error)

    def _broke(self, error: Exception, wishes: Sequence[Wish]) -> None:
        if not self._is_broken:
            # A ledger's error says all there is; anything else is a bug and needs its traceback.
            bug = None if isinstance(error, LedgerError) else error
            logger.error("Budgets cannot be checked, going on: %s", error, exc_info=bug)
        self._is_broken = True
        self._purses.failed(wishes)
        for waiting in self._served_now.values():
            for waiter in waiting:
                if not waiter.served.done():
                    answer = NotReady("Budgets cannot be checked now.", "Try again.")
                    waiter.served.set_exception(answer)

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
