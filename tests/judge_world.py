"""A version that serves, its logged answers, people's scores, and a judge behind HTTP."""

import json
import time
from types import SimpleNamespace

import yaml

from openai_server import serving
from penstock.ledger import ModelVersion
from penstock.ledger.alarms import Alarms
from penstock.monitoring.judge import Judge
from penstock.monitoring.judge_standing import run_and_settle
from penstock.project import open_project
from penstock.serving.response_id import new_response_id
from penstock.stages.base import Silent
from traffic_rows import Writers, asked, opinion

NAME = "the-judge"
GOOD, BAD = "Hold the button for ten seconds.", "No."


def said(**reply):
    """What the server answers when the model says this object."""
    return completion(json.dumps(reply))


def completion(text, **more):
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    return 200, json.dumps({"choices": [choice], "usage": usage} | more)


def shown(body):
    """The answers in a question: what stands under their headings."""
    text = body["messages"][1]["content"]
    edge = text[: text.index(" question")]
    parts = [part.partition("\n") for part in text.split(f"{edge} ")]
    return [words.rstrip("\n") for name, _, words in parts if name.endswith("answer")]


def fair(path, body):
    """A judge that knows a good answer when it sees one."""
    answers = shown(body)
    if len(answers) == 1:
        return said(score=5 if GOOD in answers[0] else 1, reason="as it is")
    good = [GOOD in answer for answer in answers]
    better = "tie" if good[0] == good[1] else ("first" if good[0] else "second")
    return said(better=better, reason="as they are")


class World:
    """A project in a folder, with a judge at an address.

    Args:
        folder: Made.
        url: Of the judge's API.
        log: The recipe's ``serve.log``.
        judge: Settings of ``observe.judge``, over small ones.
    """

    def __init__(self, folder, url, log=None, **judge):
        self.path = folder / "recipe.yaml"
        folder.mkdir(exist_ok=True)
        section = {
            "model": NAME,
            "base_url": url,
            "criteria": "It says what to do.",
            "sample": 1.0,
            "min_labels": 20,
            "max_tries": 1,
            "timeout_s": 20,
            "num_concurrent": 16,
        }
        self.path.write_text(
            yaml.safe_dump(
                {
                    "name": "penny",
                    "store": "store",
                    "sources": {"rows": {"type": "files", "paths": ["rows.jsonl"]}},
                    "evaluate": {"tasks": ["held_out"]},
                    "gate": {"max": {"held_out": 8.0}},
                    "serve": {"log": {"content": True} if log is None else log},
                    "observe": {"judge": section | judge},
                }
            )
        )
        self.open()
        self.writers = Writers(folder / "store")
        self.num_written = 0

    def open(self, **set_):
        self.recipe, self.store, self.ledger = open_project(
            self.path, {f"observe.judge.{name}": value for name, value in set_.items()}
        )

    def close(self):
        self.ledger.close()

    def serve(self, version):
        digest = f"{version:02x}" * 32
        self.ledger.add_model(ModelVersion("penny", version, "", digest, "path", "run", "data"))
        pointer = self.ledger.pointer("penny")
        self.ledger.move_pointer("penny", "production", version, pointer, "promote", "test")

    def answer(self, texts, version=1, minutes_ago=10, **more):
        """Log answers; returns the ids of the responses."""
        facts = [self._facts(text, version, minutes_ago, more) for text in texts]
        self.writers.log(*facts)
        return [one.response_id for one in facts]

    def shadow(self, ids, texts, version=2):
        """Log what a shadow answers to the same requests."""
        count = self.num_written - len(ids)
        facts = []
        for nth, text in enumerate(texts, count + 1):
            one = self._facts(text, version, 10, {"shadow": True, "model": "small"}, nth)
            facts.append(one)
        self.writers.log(*facts)

    def say(self, ids, score, **more):
        self.writers.say(*(opinion(name, "score", score, **more) for name in ids))

    def judge(self):
        return Judge(self.recipe, self.store, self.ledger)

    def run(self, **more):
        return self.judge().run(**more)

    def settle(self):
        return run_and_settle(self.judge(), Silent())

    def rows(self):
        return [row for batch in self.judge().traffic.judged.scan() for row in batch.to_pylist()]

    def alarms(self):
        return Alarms(self.ledger).of("penny")

    def _facts(self, text, version, minutes_ago, more, nth=None):
        if nth is None:
            self.num_written += 1
            nth = self.num_written
        digest = f"{version:02x}" * 32
        fresh = new_response_id("chatcmpl", digest)
        at_ms = int(1000 * (time.time() - 60 * minutes_ago))
        name = f"{fresh[:-32]}{at_ms:012x}{fresh[-20:]}"
        served = SimpleNamespace(version=version, digest=digest, run_id="run", data_version="data")
        facts = asked(name, prompt=f"Question {nth}: how do I reset it?", answer=text,
                      **({"served": served} | more))  # fmt: skip
        facts.request_id = f"req-{nth}"
        return facts


def judging(**settings):
    """A server of the judge: set ``fail`` to what it answers."""
    return serving(None, name=NAME, **settings)
