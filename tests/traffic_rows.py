"""Rows of the log and of feedback, as the gateway would have written them."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from penstock.day_tables import DAY, ID_MS, RESPONSE_ID, day_of, id_ms
from penstock.folders import LocalFolder
from penstock.monitoring.request_log import rows_of
from penstock.monitoring.row_writer import RowWriter
from penstock.serve_section import LogConfig
from penstock.serving.facts import Facts
from penstock.serving.response_id import new_response_id
from penstock.traffic import FEEDBACK_SCHEMA, FOLDER, LOG_SCHEMA, Traffic

DIGEST = "ab" * 32
KEPT = LogConfig(content=True, redact=False)
SERVED = SimpleNamespace(version=3, digest=DIGEST, run_id="run-3", data_version="data-3")


def response_id(days_ago=0, number=None):
    """A new id; given that many days ago."""
    fresh = new_response_id("chatcmpl", DIGEST)
    shifted = id_ms(fresh) - days_ago * 86_400_000 + (number or 0)
    return f"{fresh[:-32]}{shifted:012x}{fresh[-20:]}"


def asked(name, prompt="How do I sign in?", answer="With your key.", **more):
    """What is known of an answered chat."""
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    facts = {
        "model": "penny",
        "asked": "penny",
        "served": SERVED,
        "status": 200,
        "finish_reason": "stop",
        "response_id": name,
        "prompt": prompt,
        "answer": answer,
        "received_at_s": id_ms(name) / 1000 if name else 1.8e9,
    } | more
    return Facts("req-1", "/v1/chat/completions", **facts)


def opinion(name, kind="thumb", score=1.0, text=None, rater="ann", tenant=None, comment=None):
    at_ms = id_ms(name)
    return {
        DAY: day_of(at_ms),
        ID_MS: at_ms,
        RESPONSE_ID: name,
        "kind": kind,
        "rater": rater,
        "score": score,
        "text": text,
        "comment": comment,
        "tenant": tenant,
        "model": "penny",
        "received_at": datetime.now(UTC) + timedelta(seconds=1),
    }


def correction(name, text, **more):
    return opinion(name, "correction", None, text, **more)


class Writers:
    """Writes to the log and the feedback of a store; each call is one commit."""

    def __init__(self, store):
        self.traffic = Traffic(LocalFolder(store / FOLDER))
        self._log = RowWriter(self.traffic.log, LOG_SCHEMA, None)
        self._feedback = RowWriter(self.traffic.feedback, FEEDBACK_SCHEMA, None)

    def log(self, *facts):
        self._log.append(self._log.begin(), rows_of(facts, KEPT))

    def say(self, *opinions):
        self._feedback.append(self._feedback.begin(), opinions)
