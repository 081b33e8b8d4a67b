"""Who may ask, and how much: the keys and budgets of one gateway, where it has them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext

from penstock.ledger.accounts import Accounts
from penstock.ledger.api_keys import ApiKey, ApiKeys
from penstock.serving.budgets import Budgets, Reservation
from penstock.serving.keys import KeyRing
from penstock.serving.prices import PriceList
from penstock.serving.routes import ServedVersion


class Access:
    """Keys and budgets of one gateway process.

    Args:
        keys: None lets everybody in.
        accounts: Where use is reported; None reports it nowhere, and is only for no keys.
        prices: What the models cost.
    """

    def __init__(self, keys: ApiKeys | None, accounts: Accounts | None, prices: PriceList) -> None:
        if keys is not None and accounts is None:
            raise ValueError("keys without accounts have no limits")
        self._ring = None if keys is None else KeyRing(keys)
        self._budgets = None if accounts is None else Budgets(accounts, prices)

    async def start(self) -> None:
        """Read the keys, and begin to report.

        Raises:
            LedgerError: The keys cannot be read.
        """
        if self._ring is not None:
            await self._ring.start()
        if self._budgets is not None:
            self._budgets.start()

    async def stop(self) -> None:
        """Report everything; call it when no request is in flight."""
        if self._budgets is not None:
            await self._budgets.close()
        if self._ring is not None:
            await self._ring.stop()

    def authenticate(self, authorization: str | None) -> ApiKey | None:
        """The key that a request shows; None where nobody needs one.

        Raises:
            InvalidKey: It shows none that is valid.
            NotReady: That cannot be told now.
        """
        return None if self._ring is None else self._ring.authenticate(authorization)

    def reserved(
        self,
        key: ApiKey | None,
        model: str,
        prompt_tokens: int,
        max_tokens: int,
        served: ServedVersion,
    ) -> AbstractAsyncContextManager[Reservation]:
        """Reserve the most that a request can use; see ``Budgets.reserved``."""
        if self._budgets is None:
            return nullcontext(Reservation(None, model, prompt_tokens, max_tokens))
        return self._budgets.reserved(key, model, prompt_tokens, max_tokens, served=served)
