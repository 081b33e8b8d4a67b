"""What one gateway process has drawn from keys' accounts, and what became of it.

Plain bookkeeping in memory: no clock, no database, no event loop. ``budgets.py`` drives
it; a test drives it through every order of events. For each purse, all the time::

    drawn from the account = rest + reserved + spent + returned

``spent`` and ``returned`` are what the ledger has not been told yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penstock.errors import InsufficientQuota, InvalidKey, RateLimited
from penstock.ledger.accounts import AccountId, Batch, Grant, Usage, UsageId, Wish
from penstock.ledger.amounts import NOTHING, Amounts
from penstock.ledger.api_keys import ApiKey

# How old an answer of the ledger may be to refuse a request by it.
_FRESH_S = 1.0
# Drawn ahead, in rounds: as much as was reserved in the last one, times this.
_AHEAD_ROUNDS = 2
_BACK_SOON_S = 1.0


@dataclass(eq=False)
class Purse:
    """What is held of one key in one period.

    Attributes:
        account: The key's id, and the period's start.
        ends_s: When the period ends, on the driver's clock.
        rest: Free to be reserved.
        reserved: For requests in flight.
        spent: Used since the last batch.
        returned: Not needed any more; the next batch gives it back.
        recent: Reserved since the last round.
        left: What the account had left when the ledger last answered.
        elsewhere: What others held then, and may give back.
        seen_s: When that was, on the driver's clock.
    """

    account: AccountId
    ends_s: float = math.inf
    rest: Amounts = NOTHING
    reserved: Amounts = NOTHING
    spent: Amounts = NOTHING
    returned: Amounts = NOTHING
    recent: Amounts = NOTHING
    left: Amounts = NOTHING
    elsewhere: Amounts = NOTHING
    seen_s: float = -math.inf

    def take(self, need: Amounts) -> None:
        """Reserve what fits in ``rest``."""
        self.rest = self.rest.minus(need)
        self.reserved = self.reserved.plus(need)
        self.recent = self.recent.plus(need)

    def settle(self, need: Amounts, used: Amounts) -> None:
        """End a reservation; ``used`` is at most ``need``."""
        self.reserved = self.reserved.minus(need)
        self.spent = self.spent.plus(used)
        self.rest = self.rest.plus(need.minus(used))

    def give_back(self, surplus: Amounts) -> None:
        """Put aside what the next batch gives back."""
        if surplus != NOTHING:
            self.rest = self.rest.minus(surplus)
            self.returned = self.returned.plus(surplus)
            self.seen_s = -math.inf  # the account will have more left than it said

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to tell about it."""
        return all(one == NOTHING for one in (self.rest, self.reserved, self.spent, self.returned))


@dataclass
class Purses:
    """All purses of one process, and the usage it has not reported."""

    _current: dict[str, Purse] = field(default_factory=dict)
    _all: dict[AccountId, Purse] = field(default_factory=dict)
    _usage: dict[UsageId, Usage] = field(default_factory=dict)
    _unsure: set[str] = field(default_factory=set)
    _thin: dict[str, Amounts] = field(default_factory=dict)
    _unacked: Batch | None = None
    _sequence: int = 0

    # -- requests ------------------------------------------------------------

    def reserve(self, key: ApiKey, need: Amounts, now_s: float) -> Purse | None:
        """Reserve from what is at hand; None when the ledger has to be asked.

        Raises:
            ServingError: Asking would not help.
        """
        purse = self._current.get(key.id)
        if purse is not None and now_s < purse.ends_s:
            if need.fits(purse.rest):
                purse.take(need)
                return purse
            _refuse(key, need, purse, now_s)
        _refuse_for_ever(key, need)
        return None

    def granted(self, key: ApiKey, need: Amounts, grant: Grant, now_s: float) -> Purse:
        """Reserve for a request that has waited, after its grant was absorbed.

        Raises:
            ServingError: It did not fit.
        """
        if grant.ended is not None:
            raise InvalidKey(f"This API key is {grant.ended}.", "Ask for another one.")
        purse = self._current[key.id]
        if need.fits(purse.rest):
            purse.take(need)
            return purse
        _refuse(key, need, purse, now_s)
        # It fitted into what is left, but those before it did not leave that much.
        raise _out_of_budget("With those that wait, the request is", _BACK_SOON_S)

    def note(self, usage: UsageId, used: Usage) -> None:
        """Add to what the next batch reports."""
        before = self._usage.get(usage)
        self._usage[usage] = used if before is None else before.plus(used)

    # -- visits to the ledger --------------------------------------------------

    def wishes(self, needs: Mapping[str, Sequence[Amounts]], now_s: float) -> list[Wish]:
        """What to draw for requests that wait or will come; also looks at what is unsure."""
        thin, self._thin = self._thin, {}
        return [
            self._wish(key_id, tuple(needs.get(key_id, ())), thin.get(key_id, NOTHING), now_s)
            for key_id in sorted({*needs, *self._unsure, *thin})
        ]

    def _wish(self, key_id: str, needs: tuple[Amounts, ...], ahead: Amounts, now_s: float) -> Wish:
        purse = self._current.get(key_id)
        if purse is None or now_s >= purse.ends_s:
            return Wish(key_id, needs)
        if needs:
            ahead = purse.recent.times(_AHEAD_ROUNDS)
        return Wish(key_id, needs, purse.rest.above_zero(), ahead)

    def cut(self) -> Batch | None:
        """What to tell the ledger now: the last batch again, while nobody knows if it came."""
        if self._unacked is None:
            purses = [p for p in self._all.values() if p.spent.plus(p.returned) != NOTHING]
            if not purses and not self._usage:
                return None
            self._sequence += 1
            spent = {purse.account: purse.spent for purse in purses}
            returned = {purse.account: purse.returned for purse in purses}
            self._unacked = Batch(self._sequence, self._usage, spent, returned)
            self._usage = {}
            for purse in purses:
                purse.spent = purse.returned = NOTHING
        return self._unacked

    def failed(self, wishes: Sequence[Wish]) -> None:
        """A visit failed, or seemed to: what it drew may be ours."""
        self._unsure |= {wish.key_id for wish in wishes}

    def absorb(self, grants: Mapping[str, Grant], now_s: float) -> None:
        """A visit went well: its batch was taken and its grants are ours."""
        self._unacked = None
        for key_id, grant in grants.items():
            self._unsure.discard(key_id)
            if grant.ended is None:
                self._fill(key_id, grant, now_s)
        done = [purse for purse in self._all.values() if purse.is_done and now_s >= purse.ends_s]
        for purse in done:
            del self._all[purse.account]

    def _fill(self, key_id: str, grant: Grant, now_s: float) -> None:
        account = (key_id, grant.start_s)
        purse = self._all.setdefault(account, Purse(account))
        self._current[key_id] = purse
        # The ledger says what is held of budgets; all that is not free is known here.
        bound = purse.reserved.plus(purse.spent).plus(purse.returned)
        rest = grant.held.minus(bound).above_zero()
        rates = purse.rest.plus(grant.held)
        purse.rest = rates._replace(tokens=rest.tokens, nanousd=rest.nanousd)
        purse.ends_s = math.inf if grant.ends_in_s is None else now_s + grant.ends_in_s
        purse.left, purse.elsewhere, purse.seen_s = grant.left, grant.elsewhere, now_s

    # -- rounds ----------------------------------------------------------------

    def end_round(self, now_s: float, everything: bool = False) -> None:
        """Put aside what was not needed in this round, so that others can have it.

        What runs thin is filled up by the next visit, before requests have to wait for it.

        Args:
            now_s: On the driver's clock.
            everything: Keep nothing for requests to come.
        """
        for purse in self._all.values():
            is_over = everything or now_s >= purse.ends_s
            keep = NOTHING if is_over else purse.recent.times(_AHEAD_ROUNDS)
            purse.give_back(purse.rest.minus(keep).above_zero())
            purse.recent = NOTHING
            missing = keep.minus(purse.rest).above_zero()
            if missing != NOTHING:
                self._thin[purse.account[0]] = missing

    @property
    def holds_anything(self) -> bool:
        """Whether others may expect something back."""
        return any(not purse.is_done for purse in self._all.values())


def _refuse_for_ever(key: ApiKey, need: Amounts) -> None:
    """Refuse what a key's limits can never hold."""
    if key.tokens_per_min is not None and need.rate_tokens > key.tokens_per_min:
        raise RateLimited(
            f"The request may take {need.rate_tokens} tokens; this API key may use "
            f"{key.tokens_per_min} a minute.",
            "Shorten the prompt, or ask for fewer tokens by max_tokens.",
        )
    if key.budget_tokens is not None and need.tokens > key.budget_tokens:
        raise _out_of_budget(f"The request may take {need.tokens} tokens, which is", None)
    if key.budget_nanousd is not None and need.nanousd > key.budget_nanousd:
        raise _out_of_budget("What the request may cost is", None)


def _refuse(key: ApiKey, need: Amounts, purse: Purse, now_s: float) -> None:
    """Refuse a request by what the ledger has said, if that is recent enough to be true."""
    _refuse_for_ever(key, need)
    short = need.minus(purse.rest).above_zero()
    age_s = max(now_s - purse.seen_s, 0.0)
    wait_s = max(
        _refill_s(short.requests - purse.left.requests, key.requests_per_min),
        _refill_s(short.rate_tokens - purse.left.rate_tokens, key.tokens_per_min),
    )
    if age_s < min(wait_s, _FRESH_S):
        raise RateLimited(
            "This API key has used up its rate.",
            "Try again after the time that Retry-After says.",
            wait_s - age_s,
        )
    if age_s < _FRESH_S and (
        short.tokens > purse.left.tokens or short.nanousd > purse.left.nanousd
    ):
        _refuse_by_budget(short, purse, now_s)


def _refuse_by_budget(short: Amounts, purse: Purse, now_s: float) -> None:
    """Tell a budget that requests in flight may give back from one that is spent."""
    back = purse.left.plus(purse.elsewhere).plus(purse.reserved)
    if short.tokens <= back.tokens and short.nanousd <= back.nanousd:
        raise _out_of_budget(
            "Requests in flight reserve what is left; the request is", _BACK_SOON_S
        )
    ends_in_s = purse.ends_s - now_s
    raise _out_of_budget("The request is", None if math.isinf(ends_in_s) else ends_in_s)


def _out_of_budget(what: str, retry_after_s: float | None) -> InsufficientQuota:
    return InsufficientQuota(
        f"{what} more than this API key's budget has left.",
        "Ask for fewer tokens by max_tokens, or for a larger budget.",
        retry_after_s,
    )


def _refill_s(missing: int, per_min: int | None) -> float:
    """How long a rate takes to fill up by ``missing``."""
    return 0.0 if missing <= 0 or not per_min else missing * 60.0 / per_min
