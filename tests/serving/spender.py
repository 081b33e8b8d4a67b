"""A gateway that does nothing but spend; a test runs several of it, and kills some.

python spender.py LEDGER_URL KEY_ID FILE

Every token is written to FILE before anybody is told of it, so FILE knows what was really
used, whenever the process dies. Ends when the budget is spent.
"""

import asyncio
import os
import random
import sys

from penstock.errors import InsufficientQuota
from penstock.ledger import Ledger
from penstock.ledger.accounts import Accounts
from penstock.ledger.api_keys import ApiKeys
from penstock.serving.budgets import Budgets
from penstock.serving.prices import Price, PriceList

NUM_CLIENTS = 64
PROMPT_TOKENS = 10
MAX_TOKENS = 90
PRICE = Price(prompt_per_million=1, completion_per_million=2)


async def main(url, key_id, path):
    ledger = Ledger(url)
    key = next(key for key in ApiKeys(ledger.database).list() if key.id == key_id)
    budgets = Budgets(Accounts(ledger.database), PriceList({"m": PRICE}), round_s=0.1)
    budgets.start()
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    await asyncio.gather(*(client(budgets, key, log) for _ in range(NUM_CLIENTS)))
    await budgets.close()
    ledger.close()


async def client(budgets, key, log):
    while True:
        answering = asyncio.create_task(answer(budgets, key, log))
        if random.random() < 0.2:  # leaves before it has its answer
            await asyncio.sleep(random.random() * 0.01)
            answering.cancel()
        try:
            await answering
        except asyncio.CancelledError:
            pass
        except InsufficientQuota as error:
            if error.retry_after_s is None:
                return
            await asyncio.sleep(0.02)


async def answer(budgets, key, log):
    async with budgets.reserved(key, "m", PROMPT_TOKENS, MAX_TOKENS) as reservation:
        os.write(log, b"prompt\n")
        reservation.used(PROMPT_TOKENS, 0)
        for number in range(1, random.choice((30, 60, MAX_TOKENS)) + 1):
            os.write(log, b"token\n")
            reservation.used(PROMPT_TOKENS, number)
            if number % 10 == 0:
                await asyncio.sleep(0.001)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
