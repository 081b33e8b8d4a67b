"""Embeddings per second online: the gateway's backend against plain ``encode``.

Clients ask for one text at a time and ask again once they have its vector. The peers
call ``SentenceTransformer.encode`` for each request, as a handler is commonly written:
one call at a time, or in a pool of threads as FastAPI runs plain functions. All share
one model in memory. Rounds alternate between them; a ratio is the median of the
rounds' ratios to the faster peer of each round. The last column is the ceiling: all
texts in one call, which no online server has. A long text keeps a CPU busy by itself,
so there is less to gain from company.

    python benchmarks/embeddings.py
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from penstock.encoder import packaged_folder
from penstock.serving.backends.base import ModelFiles
from penstock.serving.backends.sentence_transformers import SentenceTransformersBackend

# What one asks and what one stores: (fewest, most) words of a text.
LENGTHS = {"questions": (4, 12), "sentences": (13, 30), "passages": (60, 120)}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=480)
    options = parser.parse_args()
    backend = SentenceTransformersBackend(
        ModelFiles(packaged_folder("all-MiniLM-L6-v2"), Path(), task="embed")
    )
    backend.load()
    import torch

    print(
        f"{date.today().isoformat()}, {platform.processor() or platform.machine()}, torch with "
        f"{torch.get_num_threads()} threads; {options.rounds} rounds of {options.texts} texts\n"
    )
    print(
        "| texts | clients | penstock | one at a time | thread pool | ratio (median) | ratios "
        "| one call |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for kind, clients in (("questions", 1), *((kind, 16) for kind in LENGTHS)):
        print(row(backend, kind, clients, options.rounds, options.texts), flush=True)
    backend.close()


def row(
    backend: SentenceTransformersBackend, kind: str, clients: int, num_rounds: int, count: int
) -> str:
    """Texts per second, median of rounds, after one that warms up."""
    model = backend._encoder._model
    readings = []
    for number in range(num_rounds + 1):
        texts = some_texts(kind, count, number)
        readings.append(
            (
                asyncio.run(rate(texts, clients, lambda text: backend.embed([text]))),
                pooled(model, texts, clients, 1),
                pooled(model, texts, clients, clients),
                offline(model, texts),
            )
        )
    kept = readings[1:]
    ratios = [ours / max(one, pool) for ours, one, pool, _ in kept]
    ours, one, pool, ceiling = (statistics.median(column) for column in zip(*kept, strict=True))
    best, worst = max(ratios), min(ratios)
    return (
        f"| {kind} | {clients} | {ours:.0f} | {one:.0f} | {pool:.0f} "
        f"| {statistics.median(ratios):.1f} | {worst:.1f} to {best:.1f} | {ceiling:.0f} |"
    )


def pooled(model, texts: list[str], clients: int, num_threads: int) -> float:
    """The peers: every request is a call of its own."""
    with ThreadPoolExecutor(num_threads) as pool:

        async def encode(text: str) -> None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(
                pool, lambda: model.encode([text], normalize_embeddings=True)
            )

        return asyncio.run(rate(texts, clients, encode))


def offline(model, texts: list[str]) -> float:
    """All texts in one call."""
    started_s = time.perf_counter()
    model.encode(texts, normalize_embeddings=True, batch_size=32)
    return len(texts) / (time.perf_counter() - started_s)


async def rate(texts: list[str], clients: int, embed) -> float:
    """Texts per second of clients that take the next text once they have a vector."""
    left = iter(texts)

    async def client() -> None:
        for text in left:
            await embed(text)

    started_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return len(texts) / (time.perf_counter() - started_s)


def some_texts(kind: str, count: int, seed: int) -> list[str]:
    """Texts of this project's own documentation."""
    docs = Path(__file__).parents[1] / "docs"
    pages = " ".join(page.read_text("utf-8") for page in sorted(docs.rglob("*.md")))
    words = [word for word in pages.split() if word.isalpha()]
    dice = random.Random(seed)
    fewest, most = LENGTHS[kind]
    starts = (dice.randrange(len(words) - most) for _ in range(count))
    return [" ".join(words[start : start + dice.randint(fewest, most)]) for start in starts]


if __name__ == "__main__":
    main()
