"""A version that serves, its training rows, and a request log of made-up topics."""

import hashlib
import json
import multiprocessing
import os
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
import yaml

from penstock.ledger import ModelVersion, schema
from penstock.monitoring.drift import DriftWatch
from penstock.project import open_project
from penstock.serving.response_id import new_response_id
from traffic_rows import Writers, asked

WINDOW_S = 3600
TOPICS = {
    "money": ("invoice", "refund", "price", "charge", "card", "bank", "pay", "bill", "discount"),
    "access": ("password", "login", "account", "email", "reset", "token", "locked", "session"),
    "travel": ("train", "flight", "hotel", "luggage", "ticket", "station", "border", "island"),
}
DRIFT = {
    "window_s": WINDOW_S,
    "min_rows": 20,
    "max_rows": 60,
    "columns": ["input"],
    "false_alarms": {"chance": 0.1, "windows": 20},
}
# When the first version begins to serve: tests cannot wait for windows, and what
# breaks ties is drawn by the time, so it is always the same.
START_S = 1_893_456_000


class HashedWords:
    """An embedding of bags of words: each word has a direction of its own.

    Args:
        dim: Of vectors.
        before: Called before texts are embedded, with how often that was until then.
    """

    def __init__(self, dim=16, before=lambda count: None):
        self.digest = hashlib.sha256(f"{dim}".encode()).hexdigest()
        self.count = 0
        self._dim, self._before = dim, before

    def __call__(self, texts):
        self._before(self.count)
        self.count += 1
        sums = np.stack([sum(map(self._word, text.split())) for text in texts])
        return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)

    def _word(self, word):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
        return np.random.default_rng(seed).standard_normal(self._dim)


def sentence(chance, mix):
    topic = chance.choices(list(mix), list(mix.values()))[0]
    return " ".join(chance.choices(TOPICS[topic], k=8))


class World:
    """A project in a folder.

    Args:
        folder: Made.
        drift: Settings of ``observe.drift``, over small ones.
        content: Whether the recipe says that texts are logged.
        trained: Columns of the training rows; other than the usual two, of a classifier.
    """

    def __init__(self, folder, content=True, trained=("instruction", "response"), **drift):
        self.path = folder / "recipe.yaml"
        folder.mkdir(exist_ok=True)
        self._trained = trained
        text, label = trained
        is_classifier = text != "instruction"
        self.path.write_text(
            yaml.safe_dump(
                {
                    "name": "penny",
                    "store": "store",
                    "sources": {"rows": {"type": "files", "paths": ["rows.jsonl"]}},
                    "evaluate": {"tasks": ["held_out"]},
                    "gate": {"max": {"held_out": 8.0}},
                    "serve": {"log": {"content": content}},
                    "train": {"classifier": {"text": text, "label": label}}
                    if is_classifier
                    else {},
                    "observe": {"drift": DRIFT | drift},
                }
            )
        )
        self.recipe, self.store, self.ledger = open_project(self.path)
        self.writers = Writers(folder / "store")
        self.next_s = START_S
        self._chance = random.Random(5)

    def close(self):
        self.ledger.close()

    def serve(self, version, trained_here=True):
        """Register a version and point the alias at it; the first window begins after it."""
        digest = f"{version:02x}" * 32
        print_ = f"train-{version}" if trained_here else ""
        if trained_here:
            self._train(version)
        model = ModelVersion("penny", version, print_, digest, "path", "run", "data")
        self.ledger.add_model(model)
        pointer = self.ledger.pointer("penny")
        self.ledger.move_pointer("penny", "production", version, pointer, "promote", "test")
        self.start_s = self.next_s
        with self.ledger.database.write() as connection:
            connection.execute(
                sa.update(schema.audit)
                .where(schema.audit.c.to_version == version)
                .values(at_s=self.start_s - 1)
            )
        self.version, self.digest = version, digest

    def talk(self, windows, mix, rows=30, **more):
        """Log some windows of traffic about a mix of topics."""
        for _ in range(windows):
            facts = [self._facts(i, mix, more) for i in range(rows)]
            if facts:
                self.writers.log(*facts)
            self.next_s += WINDOW_S

    def watch(self, embedding=None):
        return DriftWatch(self.recipe, self.store, self.ledger, embedding or HashedWords())

    def check(self, embedding=None):
        """Look at everything that was logged."""
        return self.watch(embedding).check(self.now_s)

    @property
    def now_s(self):
        return self.next_s + 200

    def alarms(self):
        from penstock.ledger.alarms import Alarms

        return Alarms(self.ledger).of("penny")

    def _facts(self, i, mix, more):
        at_ms = int(self.next_s * 1000) + 1000 * i
        fresh = new_response_id("chatcmpl", self.digest)
        # Its random end, which tests cannot do without knowing.
        end = hashlib.sha256(f"{at_ms}".encode()).hexdigest()[:20]
        name = f"{fresh[:-32]}{at_ms:012x}{end}"
        served = type("Served", (), {"version": self.version, "digest": self.digest,
                                     "run_id": "run", "data_version": "data"})  # fmt: skip
        prompt, answer = sentence(self._chance, mix), sentence(self._chance, mix)
        told = {"served": served, "conversation": None} | more
        return asked(name, **({"prompt": prompt, "answer": answer} | told))

    def _train(self, version):
        folder = self.store.root / "artifacts" / f"prepare-{version}"
        folder.mkdir(parents=True)
        chance = random.Random(version)
        ids = [hashlib.sha256(f"{version}/{i}".encode()).hexdigest()[:32] for i in range(80)]
        mix = {"money": 0.5, "access": 0.5}
        rows = {
            "_row_id": ids,
            "split": ["train"] * 60 + ["validation"] * 20,
            **{name: [sentence(chance, mix) for _ in ids] for name in self._trained},
        }
        pq.write_table(pa.table(rows), folder / "examples.parquet")
        self._record("prepare", f"prepare-{version}", f"artifacts/prepare-{version}", {})
        self._record("train", f"train-{version}", "none", {"prepare": f"prepare-{version}"})

    def _record(self, stage, fingerprint, path, inputs):
        values = {
            "fingerprint": fingerprint,
            "stage": stage,
            "recipe": "penny",
            "path": path,
            "digest": "d" * 64,
            "summary": "{}",
            "settings": "{}",
            "input_contents": "{}",
            "inputs": json.dumps(inputs),
            "run_id": "run",
            "duration_s": 0,
            "created_s": 0,
        }
        with self.ledger.database.write() as connection:
            connection.execute(sa.insert(schema.artifacts).values(**values))


def checking(world, num, die_at=None):
    """Check in other processes, all at once.

    Args:
        world: Whose traffic.
        num: How many processes.
        die_at: They end before they embed for the so-manieth time.

    Returns:
        Their exit codes.
    """
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(num)
    arguments = (world.path, world.now_s, gate, die_at)
    workers = [context.Process(target=_check, args=arguments) for _ in range(num)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    return [worker.exitcode for worker in workers]


def _check(path, now_s, gate, die_at):
    recipe, store, ledger = open_project(path)

    def before(count):
        if count == die_at:
            os._exit(9)

    gate.wait()
    DriftWatch(recipe, store, ledger, HashedWords(before=before)).check(now_s)
    ledger.close()
