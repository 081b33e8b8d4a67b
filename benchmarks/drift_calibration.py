"""How often drift is seen where there is none, and how soon where there is some.

Texts are docstrings of Python's standard library, embedded by the packaged MiniLM; the new
topic is SciPy. A window draws 200 of them. What is looked at:

- *One window*: the two tests of ``penstock.gates.two_sample`` against 2,000 training rows;
- *a stream* of windows: ``penstock.gates.stream_alarm`` with the defaults (5 % in 365
  windows), fed as ``penstock drift`` feeds it: distance from the training rows, distance
  from the other windows, length. Beside it, what is often done: an alarm when a window's
  own test says p < 0.05;
- with ``--evidently``, Evidently's ways on the same windows, each as it comes.

    python benchmarks/drift_calibration.py [--quick] [--only-null] [--streams 200] [--seed 20261128]
    python benchmarks/drift_calibration.py --evidently
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

# Many processes of one thread each.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import machine  # noqa: E402 - found through the path set above
from penstock.examples.python_docs.docs_source import Doc, read_docs  # noqa: E402
from penstock.gates.stream_alarm import Budget, Seen, follow  # noqa: E402
from penstock.gates.two_sample import compare, fourier_features  # noqa: E402

ROWS = 200
TRAINING = 2_000
HORIZON = 365
BEFORE, AFTER = 60, 60


@dataclass
class Pool:
    """Texts to draw windows from.

    Attributes:
        vectors: Shape (n, 384).
        places: Their features, whose mean is where a window lies, shape (n, f).
        log_lengths: Shape (n,).
        topic: 0 and 1: two halves of the standard library; 2: the new topic. Shape (n,).
    """

    vectors: np.ndarray
    places: np.ndarray
    log_lengths: np.ndarray
    topic: np.ndarray

    def draw(self, random: np.random.Generator, shares: tuple[float, ...], rows: int) -> np.ndarray:
        """Rows, each topic with its share."""
        counts = random.multinomial(rows, shares)
        return np.concatenate(
            [random.choice(np.flatnonzero(self.topic == k), n) for k, n in enumerate(counts)]
        )


@dataclass(frozen=True)
class Change:
    """What is different after a change.

    Attributes:
        shares: Of the topics.
        push: Vectors are moved by so much in one direction, and brought back to length 1.
        longer: Texts are longer by this factor.
    """

    shares: tuple[float, float, float] = (0.5, 0.5, 0.0)
    push: float = 0.0
    longer: float = 1.0


NONE = Change()
CHANGES = {
    "topic mix 50:50 -> 60:40": Change((0.6, 0.4, 0.0)),
    "topic mix 50:50 -> 75:25": Change((0.75, 0.25, 0.0)),
    "new topic 2 %": Change((0.49, 0.49, 0.02)),
    "new topic 5 %": Change((0.475, 0.475, 0.05)),
    "new topic 10 %": Change((0.45, 0.45, 0.1)),
    "new topic 30 %": Change((0.35, 0.35, 0.3)),
    "mean moved by 0.03": Change(push=0.03),
    "mean moved by 0.1": Change(push=0.1),
    "texts 20 % longer": Change(longer=1.2),
}


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="A minute: shows that it runs.")
    parser.add_argument("--only-null", action="store_true", help="Only streams without a change.")
    parser.add_argument(
        "--evidently", action="store_true", help="One window's tests beside Evidently's, alone."
    )
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20261128)
    options = parser.parse_args()
    streams = 8 if options.quick else options.streams
    found = pool(600 if options.quick else 4_000)
    print(
        f"{machine()}. {len(found.vectors):,} texts, {streams} null streams of {HORIZON} windows, "
        f"{ROWS} rows a window, seed {options.seed}\n"
    )
    print(f"2 windows of 5,000 x 384, both tests: {speed(found):.2f} s, median of 5\n", flush=True)
    if options.evidently:
        beside_evidently(found, max(streams // 5, 4), options.seed)
        return
    with ProcessPoolExecutor(initializer=keep, initargs=(found,)) as workers:
        null(workers, streams, options.seed)
        if not options.only_null:
            changes(workers, max(streams // 5, 4), options.seed)


def null(workers: ProcessPoolExecutor, streams: int, seed: int) -> None:
    """Streams in which nothing changes."""
    seeds = range(seed, seed + streams)
    alarms = list(workers.map(partial(first_alarm, NONE, HORIZON, 0), seeds))
    tests = np.array(list(workers.map(partial(window_tests, NONE), seeds)))
    level = float(np.mean(tests.min(axis=1) <= 0.025))
    print("| where nothing changes | false alarms |\n|---|---|")
    print(f"| a window's two tests, 5 % together: windows | {level:.1%} |")
    print(f"| an alarm at each p < 0.05: years of daily windows | {1 - (1 - level) ** 365:.1%} |")
    num = sum(one is not None for one in alarms)
    shown = f"{num / streams:.1%} ({num} of {streams})"
    print(f"| the stream, 5 % in 365: years of daily windows | {shown} |\n", flush=True)


def changes(workers: ProcessPoolExecutor, streams: int, seed: int) -> None:
    """Streams in which something changes after some windows."""
    print(
        f"| change after {BEFORE} windows | one window: kernel | classifier | either "
        f"| stream: seen within {AFTER} | windows until then, median |\n|---|---|---|---|---|---|"
    )
    for name, change in CHANGES.items():
        seeds = range(seed + 10_000, seed + 10_000 + streams)
        tests = np.array(list(workers.map(partial(window_tests, change), seeds))) <= 0.025
        alarms = list(workers.map(partial(first_alarm, change, BEFORE, AFTER), seeds))
        delays = [np.inf if one is None else one - BEFORE + 1 for one in alarms]
        real = [delay for delay in delays if delay > 0]
        seen = np.mean(np.isfinite(real)) if real else 0.0
        median = np.median(real) if real else np.inf
        cells = [f"{rate:.0%}" for rate in (*tests.mean(axis=0), tests.any(axis=1).mean(), seen)]
        shown = f"{median:.0f}" if np.isfinite(median) else f"over {AFTER}"
        print(f"| {name} | {' | '.join(cells)} | {shown} |", flush=True)


def beside_evidently(found: Pool, windows: int, seed: int) -> None:
    """One window after each change: how often it is drift to our tests, and to Evidently's ways."""
    subprocess.run([ROOT / "scripts" / "make-env.sh", "evidently"], check=True)
    keep(found)
    header: list[str] = []
    for name, change in {"nothing": NONE, **CHANGES}.items():
        seeds = range(seed + 20_000, seed + 20_000 + windows)
        ours = [min(window_tests(change, one)) <= 0.025 for one in seeds]
        theirs = evidently([window_rows(change, one) for one in seeds], found.vectors)
        if not header:
            header = ["ours", *(f"Evidently, {way}" for way in theirs)]
            print(f"| {windows} windows each | {' | '.join(header)} |")
            print("|---" * (len(header) + 1) + "|")
        shares = [f"{share:.0%}" for share in (np.mean(ours), *theirs.values())]
        print(f"| {name} | {' | '.join(shares)} |", flush=True)


def evidently(
    windows: list[tuple[np.ndarray, np.ndarray]], vectors: np.ndarray
) -> dict[str, float]:
    """Way -> share of the windows that are drift to it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "windows.npz"
        before, after = (np.stack(side) for side in zip(*windows, strict=True))
        np.savez(path, pool=vectors, before=before, after=after)
        program = Path(__file__).with_name("evidently_windows.py")
        python = ROOT / ".venvs" / "evidently" / "bin" / "python"
        done = subprocess.run([python, program, path], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def speed(found: Pool) -> float:
    """Seconds that the tests of two large windows take."""
    random = np.random.default_rng(0)
    sides = [found.vectors[random.choice(len(found.vectors), 5_000)] for _ in range(2)]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        compare(*sides)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


_POOL: list[Pool] = []


def keep(found: Pool) -> None:
    """Give a worker the texts, once."""
    _POOL[:] = [found]


def window_tests(change: Change, seed: int) -> tuple[float, float]:
    """P-values of one window against training rows."""
    before, after = window_rows(change, seed)
    tests = compare(_POOL[0].vectors[before], after, seed=seed)
    return tests.kernel_p or 1.0, tests.classifier_p or 1.0


def window_rows(change: Change, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training rows, by their places in the pool, and a window's vectors."""
    random, found = np.random.default_rng(seed), _POOL[0]
    before = found.draw(random, NONE.shares, TRAINING)
    return before, pushed(found.vectors[found.draw(random, change.shares, ROWS)], change.push)


def first_alarm(change: Change, before: int, after: int, seed: int) -> int | None:
    """In which window a stream raises its first alarm."""
    random, found = np.random.default_rng(seed), _POOL[0]
    training = found.places[found.draw(random, NONE.shares, TRAINING)].mean(axis=0)
    windows = [
        window(found, change if i >= before else NONE, training, random)
        for i in range(before + after)
    ]
    moments = follow(windows, Budget(0.05, HORIZON))
    return next((i for i, moment in enumerate(moments) if moment.is_alarm), None)


def window(
    found: Pool, change: Change, training: np.ndarray, random: np.random.Generator
) -> dict[str, Seen]:
    """A window's signals, as ``penstock drift`` makes them."""
    rows = found.draw(random, change.shares, ROWS)
    places = found.places[rows]
    if change.push:
        places = features(pushed(found.vectors[rows], change.push))
    place = places.mean(axis=0, dtype=np.float64)
    step = place - training
    length = found.log_lengths[rows].mean() + np.log(change.longer)
    ties = random.random(3)
    return {
        "against training": Seen(np.array([step @ step]), ties[0], fixed=True),
        "since promotion": Seen(place, ties[1]),
        "length": Seen(np.array([length]), ties[2]),
    }


def pushed(vectors: np.ndarray, by: float) -> np.ndarray:
    """Vectors moved in one direction that has nothing to do with texts, of length 1 again."""
    direction = np.random.default_rng(1).standard_normal(vectors.shape[1])
    moved = vectors + np.float32(by) * (direction / np.linalg.norm(direction)).astype(np.float32)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def features(vectors: np.ndarray) -> np.ndarray:
    """As the stream takes them."""
    frequencies = np.random.RandomState(1).standard_normal((vectors.shape[1], 256))
    return fourier_features(vectors, frequencies.astype(np.float32))


def pool(num_texts: int) -> Pool:
    """Embed the texts, or find them embedded."""
    docs = [*some("stdlib", num_texts), *some("scipy", num_texts // 5)]
    texts = [doc.response for doc in docs]
    vectors = embedded(texts)
    half = [int(sha256(doc.module.split(".")[0].encode()).hexdigest(), 16) % 2 for doc in docs]
    new = len(docs) - num_texts // 5
    topic = np.array([2 if i >= new else half[i] for i in range(len(docs))])
    lengths = np.log1p([len(text) for text in texts])
    return Pool(vectors, features(vectors), lengths, topic)


def some(library: str, number: int) -> list[Doc]:
    """So many docstrings of a library, by chance but always the same."""
    docs = [doc for doc in read_docs(library) if isinstance(doc, Doc)]
    order: Callable[[Doc], str] = lambda doc: sha256(doc.origin.encode()).hexdigest()  # noqa: E731
    return sorted(docs, key=order)[:number]


def embedded(texts: list[str]) -> np.ndarray:
    """Vectors, kept between runs in the folder for temporary files."""
    name = sha256("\0".join(texts).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"penstock-drift-{name}.npy"
    if not path.exists():
        from penstock.encoder import Encoder, packaged_folder

        encoder = Encoder.load(packaged_folder("all-MiniLM-L6-v2"))
        np.save(path, encoder.encode([text[:1_000] for text in texts], batch_size=64))
    return np.load(path)


if __name__ == "__main__":
    main()
