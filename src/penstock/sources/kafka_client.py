"""Questions to Kafka brokers, each answered or given up within a set time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from penstock.errors import SourceError, SourceUnavailable
from penstock.registry import require

if TYPE_CHECKING:
    from penstock.sources.kafka import KafkaSecurity

T = TypeVar("T")

_PATIENCE_S = 0.25  # how long one look for messages waits
_ONE_ANSWER_S = 5.0  # then the question is put again, so that a signal is heard meanwhile
_AT_ONCE = 1_000  # messages of one look

# What no waiting mends, and what to do about it.
_FINAL = {
    "_AUTHENTICATION": "Check `security`, and the user's password at the broker.",
    "_SSL": "Check `security`: the broker's protocol, and the certificates.",
    "TOPIC_AUTHORIZATION_FAILED": "Allow this user to read and describe the topic.",
    "CLUSTER_AUTHORIZATION_FAILED": "Allow this user to describe the cluster.",
    "SASL_AUTHENTICATION_FAILED": "Check `security`, and the user's password at the broker.",
    "UNKNOWN_TOPIC_OR_PART": "",
    "TOPIC_EXCEPTION": "Check `topics`.",
    "UNSUPPORTED_VERSION": "Set topic_id: false if the broker is that old.",
    "_UNSUPPORTED_FEATURE": "Set topic_id: false if the broker is that old.",
}


@dataclass(frozen=True)
class Gone:
    """Offsets that were pinned and are not there any more."""

    first: int
    last: int
    reason: str


class Kafka:
    """One cluster, connected to when it is first asked.

    Args:
        servers: Brokers to ask first.
        security: TLS and SASL.
        folder: What relative files in ``security`` are relative to.
        timeout_s: How long to wait for an answer, or for the next message.
    """

    def __init__(
        self, servers: str, security: KafkaSecurity, folder: Path, timeout_s: float
    ) -> None:
        self._servers = servers
        self._security = security
        self._folder = folder
        self._timeout_s = timeout_s
        self._complaint: Any = None

    def partitions(self, topic: str) -> list[int]:
        """The partitions of a topic.

        Raises:
            SourceError: There is no such topic, or nobody answers.
        """

        def ask(left_s: float) -> list[int]:
            found = self._consumer.list_topics(topic, timeout=left_s).topics[topic]
            if found.error is not None:
                raise self._module.KafkaException(found.error)
            return sorted(found.partitions)

        return self._ask(ask, topic)

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        """Topic -> the id that it alone has, among all there were of that name.

        Raises:
            SourceError: A topic is not there or has no id, or nobody answers.
        """

        def ask(left_s: float) -> dict[str, str]:
            wanted = self._module.TopicCollection(list(topics))
            answers = self._admin.describe_topics(wanted, request_timeout=left_s)
            return {topic: str(answers[topic].result().topic_id) for topic in topics}

        ids = self._ask(ask, ", ".join(topics))
        nothing = {"", "None", "AAAAAAAAAAAAAAAAAAAAAA"}
        without = [topic for topic, id_ in ids.items() if id_ in nothing]
        if without:
            raise SourceError(
                f"The brokers at {self._servers} give topic {without[0]!r} no id.",
                "Set topic_id: false; a topic made anew then needs a source of another name.",
            )
        return ids

    def ends(self, parts: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Partition -> the offset behind the last message that may be read.

        That is where the oldest open transaction begins, if there is one.
        """

        def ask(left_s: float) -> dict[tuple[str, int], int]:
            admin = self._module.admin
            asked = {
                self._module.TopicPartition(*part): admin.OffsetSpec.latest() for part in parts
            }
            committed = self._module.IsolationLevel.READ_COMMITTED
            answers = self._admin.list_offsets(
                asked, isolation_level=committed, request_timeout=left_s
            )
            return {
                (one.topic, one.partition): int(answer.result().offset)
                for one, answer in answers.items()
            }

        return self._ask(ask, ", ".join(sorted({topic for topic, _ in parts})))

    def messages(self, topic: str, partition: int, after: int, upto: int) -> Iterator[Any]:
        """The messages between two offsets, and what of them is gone.

        Args:
            topic: Its name.
            partition: Its number.
            after: The offset to begin behind; -1 begins at the oldest there is.
            upto: The last offset to yield. Compaction and the marks of transactions
                leave gaps, also at this end.

        Yields:
            confluent_kafka's messages, and a ``Gone`` where a range is missing.

        Raises:
            SourceError: The brokers refuse, or send nothing for too long.
        """
        begin = after + 1
        if after < 0:
            begin = self._span(topic, partition)[0]
        try:
            yield from self._from(topic, partition, begin, upto)
        finally:
            with suppress(Exception):  # what is not given back is assigned over
                self._consumer.unassign()

    def _from(self, topic: str, partition: int, begin: int, upto: int) -> Iterator[Any]:
        name = f"{topic}/{partition}"
        consumer = self._consumer
        self._assign(topic, partition, begin)
        heard_s = time.monotonic()
        while begin <= upto:
            try:
                found = consumer.consume(min(_AT_ONCE, upto - begin + 1), _PATIENCE_S)
            except self._module.KafkaException as failure:
                raise self._explained(failure.args[0], name) from None
            for message in found:
                error = message.error()
                if error is None:
                    if message.offset() > upto:
                        return
                    begin = message.offset() + 1
                    yield message
                elif error.name() == "_PARTITION_EOF" and message.offset() > upto:
                    return
                elif error.name() in ("_PARTITION_EOF", "_AUTO_OFFSET_RESET"):
                    for gone in self._missing(topic, partition, begin, upto):
                        yield gone
                        begin = gone.last + 1
                    self._assign(topic, partition, begin)
                elif error.name() in ("UNKNOWN_TOPIC_OR_PART", "UNKNOWN_TOPIC_ID"):
                    yield Gone(begin, upto, "the topic was deleted")
                    return
                else:
                    self._note(error)
            if any(message.error() is None for message in found):
                heard_s, self._complaint = time.monotonic(), None
            elif time.monotonic() - heard_s > self._timeout_s or self._is_final():
                raise self._explained(self._complaint, name)

    def _assign(self, topic: str, partition: int, offset: int) -> None:
        self._consumer.assign([self._module.TopicPartition(topic, partition, offset)])

    def _missing(self, topic: str, partition: int, begin: int, upto: int) -> Iterator[Gone]:
        """Which of the wanted offsets the partition does not have, going by its two ends."""
        low, high = self._span(topic, partition)
        if begin < low:
            yield Gone(begin, min(low - 1, upto), "retention has removed them")
        if high <= upto and max(begin, high) <= upto:
            yield Gone(max(begin, high), upto, f"the partition ends at {high - 1} by now")

    def _span(self, topic: str, partition: int) -> tuple[int, int]:
        """The oldest offset, and the one behind the newest."""

        def ask(left_s: float) -> tuple[int, int]:
            part = self._module.TopicPartition(topic, partition)
            low, high = self._consumer.get_watermark_offsets(part, timeout=left_s)
            return low, high

        return self._ask(ask, f"{topic}/{partition}")

    def _ask(self, question: Callable[[float], T], about: str) -> T:
        """Ask until there is an answer, for as long as the recipe allows.

        Raises:
            SourceError: The answer is no.
            SourceUnavailable: There is none.
        """
        until_s = time.monotonic() + self._timeout_s
        while True:
            left_s = until_s - time.monotonic()
            try:
                return question(min(max(left_s, 0.1), _ONE_ANSWER_S))
            except self._module.KafkaException as failure:
                self._note(failure.args[0])
                for client in (self._consumer, self._admin):
                    client.poll(0)  # this is when complaints are heard
                if self._is_final() or time.monotonic() >= until_s:
                    raise self._explained(self._complaint, about) from None
            time.sleep(0.1)

    def _note(self, error: Any) -> None:
        """Remember the error that says most: a refusal says more than silence."""
        if self._complaint is None or not self._is_final():
            self._complaint = error

    def _is_final(self) -> bool:
        return self._complaint is not None and self._complaint.name() in _FINAL

    def _explained(self, error: Any, about: str) -> SourceError:
        self._complaint = None
        said = "they are silent" if error is None else error.str()
        if error is not None and error.name() == "UNKNOWN_TOPIC_OR_PART":
            return SourceError(f"Kafka at {self._servers} has no topic {about}.{self._topics()}")
        if error is not None and error.name() in _FINAL:
            return SourceError(
                f"Kafka at {self._servers} refuses {about}: {said}.", _FINAL[error.name()]
            )
        return SourceUnavailable(
            f"Kafka at {self._servers} has sent nothing about {about} for "
            f"{self._timeout_s:g} s: {said}.",
            "Check bootstrap_servers, `security`, and that the brokers run.",
        )

    def _topics(self) -> str:
        """A sentence about the topics there are, as far as one may ask."""
        with suppress(self._module.KafkaException):
            names = sorted(self._consumer.list_topics(timeout=2).topics)
            some = [name for name in names if not name.startswith("__")][:20]
            return f" It has: {', '.join(some)}." if some else " It has none at all."
        return ""

    @cached_property
    def _module(self) -> Any:
        require("confluent_kafka.admin", "kafka")
        return require("confluent_kafka", "kafka")

    @cached_property
    def _admin(self) -> Any:
        return self._made(self._module.admin.AdminClient, {})

    @cached_property
    def _consumer(self) -> Any:
        reading = {
            "group.id": "penstock",  # required, and never joined
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "queued.max.messages.kbytes": 65536,
            # What is wanted is there. A fetch that waits for more holds up other questions.
            "fetch.wait.max.ms": 50,
        }
        return self._made(self._module.Consumer, reading)

    def _made(self, client: Any, more: dict[str, Any]) -> Any:
        try:
            return client(self._settings() | more)
        except (self._module.KafkaException, ValueError) as error:
            raise SourceError(
                f"Kafka's client refuses these settings: {error}.",
                "Check `bootstrap_servers` and `security`.",
            ) from None

    def _settings(self) -> dict[str, Any]:
        """What the recipe says, under librdkafka's names."""
        security = self._security
        settings: dict[str, Any] = {
            "bootstrap.servers": self._servers,
            "security.protocol": security.protocol,
            "error_cb": self._note,
            "log_level": 0,  # what it has to say, we say
            "reconnect.backoff.max.ms": 1000,
        }
        if security.protocol.startswith("sasl"):
            settings["sasl.mechanism"] = security.mechanism
            settings["sasl.username"] = security.username
            settings["sasl.password"] = secret(security.password_env, "security.password_env")
        files = {
            "ssl.ca.location": security.ca_file,
            "ssl.certificate.location": security.certificate_file,
            "ssl.key.location": security.key_file,
        }
        for name, file in files.items():
            if file is not None:
                settings[name] = str(self._folder / file)
        if security.key_password_env is not None:
            settings["ssl.key.password"] = secret(
                security.key_password_env, "security.key_password_env"
            )
        return settings


def secret(variable: str | None, option: str) -> str:
    """What an environment variable holds.

    Raises:
        SourceError: There is no such variable.
    """
    if variable is None or variable not in os.environ:
        raise SourceError(
            f"{option}: the environment has no variable {variable!r}.",
            "Set it to the password, or name the one that has it.",
        )
    return os.environ[variable]
