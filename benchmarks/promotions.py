"""What clients see while versions change and replicas die: nothing, it is hoped.

``python -m benchmarks.promotions [--moves 200] [--kills 50]``. First a gateway in this process
serves three tiny Llamas in turn, by CTranslate2: its pointer moves as a promotion moves it, and
clients ask all the while, half of them for streams of 200 tokens. Each answer must be, to the
last character, what the version in its header says to the prompt when asked alone: else it is
mixed or truncated. Then two Ray Serve replicas of one model are killed in turn, with -9, while
clients ask, and every answer must be whole. Counts, as Markdown.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from benchmarks.machine import machine
from penstock.serve_section import Serve
from penstock.serving.gateway import Surroundings
from penstock.serving.server import BackgroundServer

# The tests' model folders, pointer and Ray stand-in.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serving"))
from doubles import Pointer, model, served, wait_until
from tiny_llama import save_llama, save_tokenizer

TESTS = Path(__file__).parents[1] / "tests" / "serving"
VERSIONS = (1, 2, 3)
NUM_CLIENTS = 6
MAX_TOKENS, FEW_TOKENS = 200, 20
PROMPT = "water flows through"
# One answer: the version that its header names, and its text; or None for a failure.
Answer: TypeAlias = tuple[str, str] | None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    print(f"{machine()}\n")
    print("| | answers | failed | mixed or truncated |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        promote(Path(folder), options.moves)
    with tempfile.TemporaryDirectory() as folder:
        kill(Path(folder), options.kills)


def promote(folder: Path, num_moves: int) -> None:
    """Move the pointer under load."""
    folders = {number: folder / f"v{number}" for number in VERSIONS}
    for number, path in folders.items():
        save_llama(path, seed=number)
    pointer = Pointer(served(folders[1], 1))
    penny = model("ctranslate2", max_concurrency=64)
    with gateway(pointer, penny, folder) as server:
        table = server.gateway.models["penny"].table

        def move(epoch: int) -> None:
            number = 1 + epoch % len(VERSIONS)
            pointer.version = served(folders[number], number, epoch=epoch)
            wait_until(lambda: table.current.served.epoch == epoch, 60)

        alone = {}
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for epoch in VERSIONS:
                move(10 + epoch)
                version, alone[version] = require(ask(client, True))
        with load(server.url) as answers:
            for epoch in range(num_moves):
                move(100 + epoch)
                time.sleep(0.1)
    report(f"{num_moves} promotions", answers, lambda v, text: text == alone[v])


def kill(folder: Path, num_kills: int) -> None:
    """Kill replicas under load."""
    os.environ["PYTHONPATH"] = f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"
    save_tokenizer(folder / "v1")
    (folder / "v1" / "config.json").write_text('{"max_position_embeddings": 64}')
    penny = model(
        "ray_serve",
        {"inside": {"ray_fake:RayFake": {}}},
        replicas={"min": 2, "max": 2},
        resources={"num_cpus": 0.1},
    )
    with gateway(Pointer(served(folder / "v1", 1)), penny, folder) as server:
        killed: set[str] = set()
        with load(server.url, "work 0.2", FEW_TOKENS, stream=False) as answers:
            for _ in range(num_kills):
                pid = next_pid(answers, killed)
                os.kill(int(pid), signal.SIGKILL)
                killed.add(pid)
                # Until both are up again: with none there is nobody to answer.
                wait_until(lambda: len(pids(answers[-40:]) - killed) == 2, 120)
    report(f"{num_kills} replicas killed", answers, lambda _, text: text.startswith("v1 "))


def next_pid(answers: list[Answer], killed: set[str]) -> str:
    """A replica that answers."""
    wait_until(lambda: len(pids(answers[-40:]) - killed) == 2, 120)
    return sorted(pids(answers[-40:]) - killed)[0]


def pids(answers: list[Answer]) -> set[str]:
    """Process ids of the replicas that gave these answers."""
    return {answer[1].split()[1] for answer in answers if answer is not None}


@contextmanager
def gateway(pointer: Pointer, penny: Any, folder: Path) -> Iterator[BackgroundServer]:
    """A gateway that is ready."""
    config = Serve(port=0, metrics_port=None, models={"penny": penny}, poll_interval_s=0.05)
    with BackgroundServer(config, Surroundings(pointer, folder / "cache", TESTS)) as server:
        server.wait_ready()
        yield server


@contextmanager
def load(
    url: str, prompt: str = PROMPT, max_tokens: int = MAX_TOKENS, stream: bool | None = None
) -> Iterator[list[Answer]]:
    """Clients that ask without a pause, every second one for streams; yields the answers."""
    answers: list[Answer] = []
    stopped = threading.Event()

    def hammer(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stopped.is_set():
                as_stream = number % 2 == 0 if stream is None else stream
                answers.append(ask(client, as_stream, prompt, max_tokens))

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        running = [pool.submit(hammer, number) for number in range(NUM_CLIENTS)]
        try:
            yield answers
        finally:
            stopped.set()
        for one in running:
            one.result()


def ask(
    client: httpx.Client, stream: bool, prompt: str = PROMPT, max_tokens: int = MAX_TOKENS
) -> Answer:
    """One completion, greedy."""
    body = {"model": "penny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    try:
        reply = client.post("/v1/completions", json={**body, "stream": stream})
    except httpx.HTTPError:
        return None
    if reply.status_code != 200:
        return None
    text = reply.text
    if not stream:
        return reply.headers["x-penstock-model-version"], reply.json()["choices"][0]["text"]
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    if events[-1] != "[DONE]":
        return reply.headers["x-penstock-model-version"], "(no end)"
    pieces = [json.loads(event)["choices"][0]["text"] for event in events[:-1]]
    return reply.headers["x-penstock-model-version"], "".join(pieces)


def require(answer: Answer) -> tuple[str, str]:
    """The answer, which must be one."""
    if answer is None:
        raise RuntimeError("The gateway does not answer.")
    return answer


def report(what: str, answers: list[Answer], whole: Callable[[str, str], bool]) -> None:
    """One row of the table."""
    counts = collections.Counter(
        "failed" if answer is None else "whole" if whole(*answer) else "mixed" for answer in answers
    )
    print(f"| {what} | {len(answers):,} | {counts['failed']} | {counts['mixed']} |", flush=True)


if __name__ == "__main__":
    main()
