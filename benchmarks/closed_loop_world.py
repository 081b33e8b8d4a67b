"""The world of ``benchmarks.closed_loop``: boxes, those who ask for them, and a clock.

Users ask where things lie. They know, score each answer, and correct wrong ones. Windows are
an hour of a clock that is moved by hand, so that a day takes seconds.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import yaml

from penstock.serving.server import BackgroundServer

WINDOW_S = 3600.0
OLD = ("cup", "fork", "plate", "spoon", "bowl", "knife", "glass", "jug")
NEW = ("pen", "key", "disk", "lamp", "bolt", "glue", "wire", "fuse")
PLACES = ("red", "blue", "green", "black")
ASKED = ("Where is the {}? Ticket {}.", "Please find the {} for me, ticket {}.")
SHARE_OF_NEW = 0.8

RECIPE: dict[str, Any] = {
    "name": "boxes",
    "store": "store",
    "sources": {
        "rows": {"type": "files", "paths": ["data/*.jsonl"]},
        "users": {"type": "requests", "store": "store", "max_rows_per_rater": 60},
    },
    "ingest": {"min_new_examples": 30},
    "validate": {"range": {}, "max_bad_rows": 0.05},
    "prepare": {
        "transforms": ["normalise", "dedupe", {"split": {"validation": 0.1}}],
        "tokenizer": {"vocab_size": 400},
        "max_length": 96,
    },
    "train": {
        "model": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 4,
            "max_position_embeddings": 128,
        },
        "rows": "new",
        "replay": 0.5,
        "epochs": 50,
        "max_steps": 260,
        "continue_epochs": 200,
        "continue_max_steps": 1000,
        "batch_size": 32,
        "learning_rate": 0.004,
        "warmup_steps": 10,
    },
    "evaluate": {"tasks": ["boxes"], "task_dir": "tasks", "apply_chat_template": True},
    "gate": {"min": {"boxes": 0.8}, "max_regression": 0.05},
    "deploy": {
        "rollout": {
            "steps": [30, 100],
            "min_requests": 40,
            "margins": {"errors": 0.5, "latency": None, "score": 0.2},
            "harm_above": {"latency": 50},
            "step_deadline_s": None,
        }
    },
    "serve": {
        "port": 0,
        "metrics_port": None,
        "models": {"boxes": {}},
        "log": {"content": True, "flush_s": 0.2},
    },
    "observe": {
        "drift": {
            "window_s": WINDOW_S,
            "min_rows": 24,
            "max_rows": 60,
            "columns": ["input"],
        },
        "retrain": {
            # A run needs something to learn: users go on correcting for some hours first.
            "debounce_s": 16 * WINDOW_S,
            "cooldown_s": WINDOW_S,
            "max_failures": 2,
        },
    },
}


class Clock:
    """Time that is moved by hand: an hour passes when it is told to."""

    def __init__(self) -> None:
        self._time, self._time_ns = time.time, time.time_ns
        self.ahead_s = 0.0

    def __enter__(self) -> Clock:
        time.time = lambda: self._time() + self.ahead_s
        time.time_ns = lambda: self._time_ns() + int(self.ahead_s * 1e9)
        return self

    def __exit__(self, *_: object) -> None:
        time.time, time.time_ns = self._time, self._time_ns

    def to_next_window(self) -> None:
        """Move to a second after the next whole window."""
        now_s = time.time()
        self.ahead_s += (now_s // WINDOW_S + 1) * WINDOW_S + 1 - now_s


class Users:
    """They ask, know the answers, score and correct.

    Args:
        server: Whom they ask.
        seed: Of what they ask.

    Attributes:
        rated: What they have asked for and scored, and whether the answer was right.
    """

    def __init__(self, server: BackgroundServer, seed: int) -> None:
        self.rated: list[tuple[str, bool]] = []
        self._url = server.url
        self._chance = random.Random(f"users {seed}")
        self._client = httpx.Client(timeout=60)
        self._pool = ThreadPoolExecutor(8)

    def close(self) -> None:
        """Go."""
        self._pool.shutdown()
        self._client.close()

    def talk(self, count: int, share_of_new: float) -> None:
        """Ask, and say of each answer whether it was right."""
        things = [
            self._chance.choice(NEW if self._chance.random() < share_of_new else OLD)
            for _ in range(count)
        ]
        list(self._pool.map(self._ask_and_rate, [(t, self._chance.random()) for t in things]))

    def wait_for(self, version: int) -> None:
        """Ask until the gateway has followed the pointer."""
        for _ in range(200):
            if self._version() == str(version):
                return
            time.sleep(0.05)
        raise RuntimeError(f"version {version} does not serve")

    def quality(self, things: Sequence[str]) -> float:
        """The share of right answers, without a word about them."""
        questions = [(thing, self._chance.random()) for thing in things for _ in range(8)]
        right = self._pool.map(lambda asked: self._ask(*asked)[1] == place(asked[0]), questions)
        return statistics.fmean(right)

    def poison(self, count: int, raters: int) -> None:
        """Say that right answers were wrong, and what is wrong was right."""
        some = [(self._chance.choice(OLD), self._chance.random(), i % raters) for i in range(count)]
        list(self._pool.map(self._ask_and_lie, some))

    def _ask_and_rate(self, asked: tuple[str, float]) -> None:
        thing, lot = asked
        name, answer = self._ask(thing, lot)
        right = place(thing)
        self.rated.append((thing, answer == right))
        said: dict[str, Any] = {"score": float(answer == right), "rater": f"user {lot * 40:.0f}"}
        self._say(name, said if answer == right else said | {"correction": right})

    def _ask_and_lie(self, asked: tuple[str, float, int]) -> None:
        thing, lot, rater = asked
        name, _ = self._ask(thing, lot)
        at = (*OLD, *NEW).index(thing)
        self._say(name, {"correction": answer_of(thing, at + 1), "rater": f"bad {rater}"})

    def _ask(self, thing: str, lot: float) -> tuple[str, str]:
        answer = self._post(thing, lot).json()
        return answer["id"], answer["choices"][0]["message"]["content"].strip()

    def _version(self) -> str:
        return self._post(OLD[0], 0.5).headers["x-penstock-model-version"]

    def _post(self, thing: str, lot: float) -> httpx.Response:
        body = {
            "model": "boxes",
            "messages": [{"role": "user", "content": question(thing, lot)}],
            "max_tokens": 40,
            "temperature": 0,
        }
        reply = self._client.post(f"{self._url}/v1/chat/completions", json=body)
        return reply.raise_for_status()

    def _say(self, name: str, said: Mapping[str, Any]) -> None:
        body = {"response_id": name, **said}
        self._client.post(f"{self._url}/v1/feedback", json=body).raise_for_status()


def question(thing: str, lot: float) -> str:
    """How somebody asks for a thing; ``lot`` in [0, 1) says how."""
    return ASKED[int(lot * 1000) % len(ASKED)].format(thing, int(lot * 900) + 100)


def answer_of(thing: str, at: int) -> str:
    """An answer that names the place of this number."""
    return f"The {thing} is in the {PLACES[at % len(PLACES)]} box."


def place(thing: str) -> str:
    """The right answer."""
    return answer_of(thing, (*OLD, *NEW).index(thing))


def write_project(folder: Path, seed: int, rows: int = 500, items: int = 120) -> Path:
    """Write recipe, rows about the old things, and the task; returns the recipe's path."""
    chance = random.Random(f"rows {seed}")
    (folder / "data").mkdir(parents=True)
    (folder / "tasks").mkdir()
    things = [chance.choice(OLD) for _ in range(rows)]
    lines = [
        {"instruction": question(thing, chance.random()), "response": place(thing)}
        for thing in things
    ]
    _write_lines(folder / "data" / "first.jsonl", lines)
    questions = [
        {
            "instruction": question(OLD[i % len(OLD)], chance.random()),
            "choices": [answer_of(OLD[i % len(OLD)], at) for at in range(len(PLACES))],
            "answer": i % len(OLD) % len(PLACES),
        }
        for i in range(items)
    ]
    _write_lines(folder / "tasks" / "boxes.jsonl", questions)
    task = {
        "task": "boxes",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str((folder / "tasks/boxes.jsonl").resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{instruction}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (folder / "tasks" / "boxes.yaml").write_text(yaml.safe_dump(task))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"seed": seed}, sort_keys=False))
    return path


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
