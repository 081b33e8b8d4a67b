"""The loop closes by itself: users change, an alarm, one retraining, a trial, a better model.

``python -m benchmarks.closed_loop`` plays it once, with times; ``--seeds 20`` repeats it with
other users, and ``--null`` is the same without a change, in which nothing may be retrained.

Everything is real but the users and the clock: a gateway that answers, a request log, the
drift checks, ``penstock watch``'s decisions, training, lm-eval, the gate, and a trial on live
requests. Users ask where things lie. They know, score each answer, and correct wrong ones. At a
known window they begin to ask about other things. Windows are an hour of a clock that is moved
by hand, so that a day takes seconds. At the end some raters send wrong corrections, and the
gate keeps out what was learned from them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.machine import machine
from penstock.gates.retrain_policy import Move, RetrainDecision
from penstock.ledger.alarms import Alarm
from penstock.ledger.rollouts import Rollouts
from penstock.pipeline import Pipeline, open_pipeline
from penstock.retrain import Limits, Loop, Watch
from penstock.serving.server import BackgroundServer

WINDOW_S = 3600.0
OLD = ("cup", "fork", "plate", "spoon", "bowl", "knife", "glass", "jug")
NEW = ("invoice", "contract", "receipt", "passport", "letter", "stamp", "folder", "licence")
PLACES = ("red", "blue", "green", "black")
ASKED = ("Where is the {}? Ticket {}.", "Please find the {} for me, ticket {}.")
SHARE_OF_NEW = 0.8
# Wrong corrections, by so many raters: more than there are rows about the same things.
POISON, BAD_RATERS = 800, 40

RECIPE: dict[str, Any] = {
    "name": "boxes",
    "store": "store",
    "sources": {
        "rows": {"type": "files", "paths": ["data/*.jsonl"]},
        "users": {"type": "requests", "store": "store", "max_rows_per_rater": 30},
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
        "continue_epochs": 50,
        "continue_max_steps": 450,
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
            "false_alarms": {"chance": 0.05, "windows": 10},
        },
        "retrain": {
            "debounce_s": 600,
            "cooldown_s": WINDOW_S,
            "max_failures": 2,
        },
    },
}


@dataclass
class Told:
    """What came of one run of the simulation; times in windows of an hour, or in seconds."""

    seed: int
    shifted: bool
    windows_before: int = 0
    windows_to_alarm: int | None = None
    alarms: int = 0
    runs: list[str] = field(default_factory=list)
    quality_before: float = 0.0
    quality_after: float = 0.0
    quality_old_after: float = 0.0
    serves: int = 1
    poisoned: str = ""
    serves_after_poison: int = 1
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def recovered(self) -> bool:
        """One retraining, of which users have what they asked for."""
        better = self.quality_after >= 0.9 > 0.5 > self.quality_before
        return self.runs == ["PROMOTED"] and better and self.serves == 2


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


class InProcess:
    """Runs the loop in this process: what is imported for one run is there for the next."""

    is_here = True

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def carry_on(self, key: str, conf: Mapping[str, Any]) -> str | None:
        """Run it to its end."""
        self._pipeline.run_named(key)
        return None

    def close(self) -> None:
        """There is nothing to leave."""


class Users:
    """They ask, know the answers, score and correct.

    Args:
        server: Whom they ask.
        seed: Of what they ask.
    """

    def __init__(self, server: BackgroundServer, seed: int) -> None:
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
        questions = [(thing, self._chance.random()) for thing in things for _ in range(2)]
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
    return ASKED[int(lot * 1000) % len(ASKED)].format(thing, int(lot * 90_000) + 10_000)


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


class Play:
    """One project, its users and its watcher.

    Args:
        path: The recipe.
        seed: Of everything.
        clock: In force.
        say: Shows what happens.
        embedding: What drift is looked for in; None is the recipe's.
    """

    def __init__(self, path: Path, seed: int, clock: Clock, say: Any, embedding: Any) -> None:
        self.pipeline = open_pipeline(path)
        self.clock = clock
        self._say = say
        self._embedding = embedding
        section = self.pipeline.recipe.observe.retrain
        assert section is not None
        self.loop = Loop(self.pipeline.recipe, self.pipeline.ledger, section.policy())
        limits = Limits(section.lost_after_s, section.max_run_s)
        self.watch = Watch(self.loop, InProcess(self.pipeline), [self], limits)
        self.rollouts = Rollouts(self.pipeline.ledger.database)
        self._seed = seed
        self._looks_for_drift = False

    def look(self) -> None:
        """The drift check, at the time that this clock shows."""
        if self._looks_for_drift:
            from penstock.monitoring.drift import DriftWatch

            DriftWatch(
                self.pipeline.recipe, self.pipeline.store, self.pipeline.ledger, self._embedding
            ).check()
            self._looks_for_drift = False

    @contextlib.contextmanager
    def serving(self) -> Iterator[Users]:
        """A gateway, and users before it."""
        from penstock.serving.production import served
        from penstock.serving.rollouts import rolling_out

        pipeline = self.pipeline
        config, around = served(pipeline.recipe, pipeline.store, pipeline.ledger)
        with contextlib.ExitStack() as stack:
            around = stack.enter_context(
                rolling_out(pipeline.recipe, pipeline.store, pipeline.ledger, config, around)
            )
            server = stack.enter_context(BackgroundServer(config, around))
            server.wait_ready()
            users = Users(server, self._seed)
            stack.callback(users.close)
            yield users

    def first_run(self) -> None:
        """A person starts the first run."""
        record = Alarm("boxes", "person", "first", time.time(), "info", {"reason": "the first"})
        self.loop.alarms.raise_(record)
        self.settle()
        assert self.serves == 1, self.loop.log.lines()[-1]

    def hour(self, users: Users, count: int, share_of_new: float) -> RetrainDecision:
        """Users talk for a window; then the watcher looks."""
        users.talk(count, share_of_new)
        time.sleep(0.4)  # the log is written every fifth of a second
        self.clock.to_next_window()
        self.clock.ahead_s += 130  # rows of a window may come two minutes late
        self._looks_for_drift = True
        return self.watch.tick()

    def settle(self, users: Users | None = None, share_of_new: float = 0.0) -> None:
        """Let what is due happen, while users go on."""
        for _ in range(400):
            decision = self.watch.tick()
            if decision.move is Move.IDLE and self.loop.story().on is None:
                return
            if decision.until_s is not None:
                self.clock.ahead_s += max(0.0, decision.until_s - time.time() + 1)
            if users is not None and self.trial:
                users.talk(24, share_of_new)
        raise RuntimeError(f"it does not settle: {decision}")

    @property
    def trial(self) -> bool:
        """Whether a version is on trial."""
        return self.rollouts.open("boxes", "production") is not None

    @property
    def serves(self) -> int:
        """The version that serves."""
        pointer = self.pipeline.ledger.pointer("boxes")
        return 0 if pointer is None else pointer.version

    @property
    def outcomes(self) -> list[str]:
        """Of all runs but the first."""
        return [start.outcome or "on" for start in self.loop.story().starts][1:]

    def drift_alarms(self) -> int:
        """How many there were."""
        return sum(one.alarm.kind == "drift" for one in self.loop.alarms.of("boxes", 1000))


def play(
    folder: Path,
    seed: int,
    shifted: bool = True,
    early: int = 14,
    late: int = 16,
    count: int = 30,
    poison: bool = True,
    say: Any = lambda text: None,
    embedding: Any = None,
) -> Told:
    """Play the loop once.

    Args:
        folder: Made.
        seed: Of users, rows and training.
        shifted: Whether users change.
        early: Windows before the change.
        late: Windows after it, at most; all of them where there is none.
        count: Requests in a window.
        poison: Whether wrong corrections come at the end.
        say: Shows what happens.
        embedding: What drift is looked for in; None is the recipe's.
    """
    told, began_s = Told(seed, shifted, early), time.monotonic()

    def done(what: str) -> None:
        told.seconds[what] = round(time.monotonic() - began_s, 1)
        say(f"{told.seconds[what]:6.1f} s  {what}")

    with Clock() as clock:
        made = Play(write_project(folder, seed), seed, clock, say, embedding)
        made.first_run()
        done("version 1 serves")
        with made.serving() as users:
            clock.to_next_window()
            for _ in range(early):
                made.hour(users, count, 0.0)
            done(f"{early} hours of old questions, {made.drift_alarms()} alarms")
            told.quality_before = users.quality(NEW)
            for window in range(late):
                made.hour(users, count, SHARE_OF_NEW if shifted else 0.0)
                if made.drift_alarms():
                    told.windows_to_alarm = window + 1
                    done(f"an alarm, {window + 1} hours after the change")
                    break
            made.settle(users, SHARE_OF_NEW if shifted else 0.0)
            done(f"runs {made.outcomes}, version {made.serves} serves")
            users.wait_for(made.serves)
            told.quality_after, told.quality_old_after = users.quality(NEW), users.quality(OLD)
            told.alarms, told.runs, told.serves = made.drift_alarms(), made.outcomes, made.serves
            done(
                f"right answers to new questions: {told.quality_before:.0%} before, "
                f"{told.quality_after:.0%} after; to old ones {told.quality_old_after:.0%}"
            )
            if poison:
                _poison(made, users, told, done)
    made.pipeline.ledger.close()
    return told


def _poison(made: Play, users: Users, told: Told, done: Any) -> None:
    """Wrong corrections by many raters: enough for a run, whose model the gate keeps out."""
    users.poison(POISON, BAD_RATERS)
    done(f"{POISON} wrong corrections by {BAD_RATERS} raters")
    time.sleep(0.4)
    evidence = {"reason": "users correct nearly every answer"}
    made.loop.alarms.raise_(Alarm("boxes", "quality", "scores", time.time(), evidence=evidence))
    made.settle(users)
    told.poisoned = ", ".join(made.outcomes[len(told.runs) :])
    told.serves_after_poison = made.serves
    done(f"poisoned run: {told.poisoned}; version {made.serves} serves")


def main() -> None:
    """Play it for some seeds, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--null", action="store_true", help="users do not change")
    parser.add_argument("--json", type=Path, help="write what came of each seed there")
    chosen = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "GX_ANALYTICS_ENABLED": "false"}
    print(machine(), flush=True)
    found = []
    for seed in range(1, chosen.seeds + 1):
        with tempfile.TemporaryDirectory(prefix="penstock-closed-loop-") as folder:
            print(f"seed {seed}", flush=True)
            told = play(
                Path(folder) / "project",
                seed,
                shifted=not chosen.null,
                poison=not chosen.null,
                say=lambda text: print(text, flush=True),
            )
        found.append(told)
        if chosen.json is not None:
            chosen.json.write_text(json.dumps([asdict(one) for one in found], indent=2))
    _sum_up(found, chosen.null)


def _sum_up(found: Sequence[Told], null: bool) -> None:
    if null:
        runs = sum(len(one.runs) for one in found)
        print(f"{runs} retrainings in {len(found)} streams without a change")
        return
    delays = [one.windows_to_alarm for one in found if one.windows_to_alarm is not None]
    print(f"{sum(one.recovered for one in found)} of {len(found)} recovered by one retraining")
    print(f"hours to the alarm: {delays}; median {statistics.median(delays) if delays else '-'}")
    kept = sum(one.serves_after_poison == one.serves for one in found)
    print(f"{kept} of {len(found)} poisoned retrainings kept out")


if __name__ == "__main__":
    main()
