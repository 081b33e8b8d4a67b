"""Kafka topics: each partition is a stream, and a message's offset its place on it.

Where reading goes on is what our own tables say, and nothing else: partitions are
assigned and never subscribed to, so there is no consumer group, no rebalance and
no offset that the broker keeps. A unit ends at the last offset that could be read
when it was pinned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field, model_validator

from penstock.errors import SourceError, SourceUnavailable
from penstock.section import Section
from penstock.sources.base import (
    OFFSET,
    AnyOptions,
    DeadLetter,
    Options,
    Piece,
    Place,
    Unit,
    refuse_reserved,
)
from penstock.sources.columns import ColumnTypes, printable
from penstock.sources.formats import BATCH_BYTES, BATCH_ROWS, excerpt
from penstock.sources.kafka_client import Gone, Kafka
from penstock.sources.kafka_values import Decode, NotARow, decoder
from penstock.sources.shapes import KINDS

_HEADERS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
_TIMESTAMP = pa.timestamp("ms", "UTC")


class KafkaSecurity(Section):
    """How to be let in. Secrets are named by their environment variables, never written."""

    protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        "plaintext", description="With or without TLS, with or without SASL."
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="Of SASL."
    )
    username: str | None = Field(None, description="For SASL.")
    password_env: str | None = Field(
        None, description="The environment variable with SASL's password."
    )
    ca_file: str | None = Field(
        None, description="Certificates to trust, PEM; null takes the system's."
    )
    certificate_file: str | None = Field(None, description="The client's own certificate, PEM.")
    key_file: str | None = Field(None, description="The client's private key, PEM.")
    key_password_env: str | None = Field(
        None, description="The environment variable with the key's password."
    )

    @model_validator(mode="after")
    def _is_whole(self) -> KafkaSecurity:
        sasl = self.protocol.startswith("sasl")
        if sasl and not (self.username and self.password_env):
            raise ValueError(f"protocol {self.protocol} needs username and password_env")
        if not sasl and (self.username or self.password_env):
            raise ValueError(f"protocol {self.protocol} sends no password: use sasl_ssl")
        if bool(self.certificate_file) != bool(self.key_file):
            raise ValueError("certificate_file and key_file are needed together")
        return self


class SchemaRegistry(Section):
    """Where schemas are kept."""

    url: str = Field(description="Its address, as in https://registry:8081.")
    username: str | None = Field(None, description="For HTTP Basic.")
    password_env: str | None = Field(
        None, description="The environment variable with its password."
    )
    ca_file: str | None = Field(
        None, description="Certificates to trust, PEM; null takes the usual ones."
    )

    @model_validator(mode="after")
    def _is_whole(self) -> SchemaRegistry:
        if bool(self.username) != bool(self.password_env):
            raise ValueError("username and password_env are needed together")
        if "@" in self.url.partition("://")[2].partition("/")[0]:
            raise ValueError("a password does not belong into url: use username and password_env")
        return self


class KafkaOptions(Options):
    """Which topics, where, and what their messages are."""

    # What was read is in the streams' names, so another topic is no other way of reading.
    topics: Annotated[
        list[str],
        Place(),
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value,
            json_schema_input_type=str | list[str],
        ),
    ] = Field(min_length=1, description="Topics to read, all partitions of each.")
    bootstrap_servers: Annotated[str, Place()] = Field(
        description="Brokers to ask first: host:port, separated by commas."
    )
    security: Annotated[KafkaSecurity, Place()] = Field(
        KafkaSecurity(), description="TLS and SASL; secrets come from the environment."
    )
    value: Literal["json", "avro", "json_schema", "protobuf"] = Field(
        "json", description="What a message's value is; all but json need `registry`."
    )
    registry: Annotated[SchemaRegistry | None, Place()] = Field(
        None, description="The Schema Registry that knows the values' schemas."
    )
    key: str | None = Field(None, description="Column for the message's key, as text.")
    timestamp: str | None = Field(None, description="Column for the message's time.")
    headers: str | None = Field(
        None, description="Column for the headers: a list of {name, value}, as text."
    )
    types: dict[str, Literal["string", "number", "boolean"]] = Field(
        default_factory=dict, description="Columns whose type is not to be inferred."
    )
    topic_id: bool = Field(
        True,
        description="Tell a topic that was made anew from the old one by its id; false for "
        "brokers that give none (Kafka before 2.8).",
    )
    on_lost: Annotated[Literal["fail", "skip"], Place()] = Field(
        "fail",
        description="When messages are gone before they were ingested: fail, or go on and "
        "leave a dead letter that says how many.",
    )
    timeout_s: Annotated[float, Place()] = Field(
        30.0, gt=0, description="How long to wait for brokers and registry."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> KafkaOptions:
        if (self.value == "json") != (self.registry is None):
            need = "needs no registry" if self.value == "json" else "needs a registry"
            raise ValueError(f"value {self.value} {need}")
        names = [name for name in (self.key, self.timestamp, self.headers) if name is not None]
        if len(set(names)) < len(names):
            raise ValueError("key, timestamp and headers need columns of their own")
        return self


class _Place(NamedTuple):
    """What a stream's name says."""

    topic: str
    partition: int
    topic_id: str

    @classmethod
    def of(cls, stream: str) -> _Place:
        name, _, topic_id = stream.partition("#")
        topic, _, partition = name.rpartition("/")
        return cls(topic, int(partition), topic_id)

    def __str__(self) -> str:
        name = f"{self.topic}/{self.partition}"
        return f"{name}#{self.topic_id}" if self.topic_id else name


class KafkaSource:
    """Rows from the messages of Kafka topics."""

    Options: ClassVar[AnyOptions] = KafkaOptions

    def __init__(self, options: KafkaOptions, folder: Path) -> None:
        self._options = options
        names = [options.key, options.timestamp, options.headers]
        refuse_reserved([name for name in names if name], "Columns of the message itself")
        self._kafka = Kafka(
            options.bootstrap_servers, options.security, folder.resolve(), options.timeout_s
        )
        self._decode: Decode | None = None
        self._folder = folder.resolve()

    def snapshot(self) -> tuple[Unit, ...]:
        """Pin every partition at the last offset that can be read now."""
        topics = self._options.topics
        # Ids first: a topic that is made anew meanwhile is then refused by `read`.
        ids = self._kafka.topic_ids(topics) if self._options.topic_id else {}
        parts = [(topic, part) for topic in topics for part in self._kafka.partitions(topic)]
        ends = self._kafka.ends(parts)
        units = tuple(
            Unit(
                stream=str(_Place(topic, part, ids.get(topic, ""))),
                position=ends[topic, part] - 1,
                label=f"{topic}/{part}",
                divisible=True,
            )
            for topic, part in parts
            if ends[topic, part] > 0
        )
        if not units:
            raise SourceUnavailable(
                f"There is nothing in {', '.join(topics)} yet: no message in any partition.",
                "Check what writes to it, or wait.",
            )
        return units

    def read(self, unit: Unit) -> Iterator[Piece]:
        """Yield the messages after ``unit.after``, up to the unit's position."""
        place = _Place.of(unit.stream)
        self._decode = self._decode or decoder(self._options, self._folder)
        if self._is_another(place):
            yield self._lost(
                unit, Gone(unit.after + 1, unit.position, "the topic was deleted and made anew")
            )
            return
        rows = _Rows(self._options, unit.label, self._decode)
        for found in self._kafka.messages(place.topic, place.partition, unit.after, unit.position):
            if isinstance(found, Gone):
                yield from rows.pieces()
                yield self._lost(unit, found)
            else:
                rows.add(found)
                if rows.is_full:
                    yield from rows.pieces()
        yield from rows.pieces()
        if self._is_another(place):
            raise SourceUnavailable(
                f"{unit.label}: the topic was deleted and made anew while it was read.",
                "Run again to pin it as it is now.",
            )

    def _is_another(self, place: _Place) -> bool:
        """Whether the topic of this name is no longer the one that was pinned."""
        if not place.topic_id:
            return False
        return self._kafka.topic_ids([place.topic])[place.topic] != place.topic_id

    def _lost(self, unit: Unit, gone: Gone) -> DeadLetter:
        """A letter in place of what cannot be had any more.

        Raises:
            SourceError: The recipe does not allow to go on without it.
        """
        count = gone.last - gone.first + 1
        what = f"offsets {gone.first} to {gone.last}" if count > 1 else f"offset {gone.first}"
        if self._options.on_lost == "fail":
            raise SourceError(
                f"{unit.label}: {what} ({count:,} in all) cannot be ingested any more: "
                f"{gone.reason}.",
                "Ingest more often, or keep messages longer. To go on without these, "
                "set on_lost: skip for this source.",
            )
        reason = f"lost: {what} ({count:,} in all) could not be ingested: {gone.reason}"
        return DeadLetter(f"{unit.label}@{gone.first}", reason, offset=gone.last)


class _Rows:
    """Messages on their way to a batch."""

    def __init__(self, options: KafkaOptions, label: str, decode: Decode) -> None:
        kinds = {name: KINDS[word] for name, word in options.types.items()}
        self._types = ColumnTypes(label, kinds, on_stream=True)
        self._label = label
        self._decode = decode
        self._ours = [name for name in (options.key, options.timestamp, options.headers) if name]
        self._options = options
        self._start()

    def _start(self) -> None:
        self._values: list[dict[str, Any]] = []
        self._messages: list[Any] = []
        self._letters: list[DeadLetter] = []
        self._num_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether it is time for a batch."""
        held = len(self._values) + len(self._letters)
        return held >= BATCH_ROWS or self._num_bytes >= BATCH_BYTES

    def add(self, message: Any) -> None:
        """Take one message, as a row or as a letter."""
        try:
            value = self._decode(message)
            self._check_names(value)
        except NotARow as error:
            self._letters.append(self._letter(message, str(error)))
            return
        self._values.append(value)
        self._messages.append(message)
        self._num_bytes += len(message)

    def pieces(self) -> Iterator[Piece]:
        """What was taken since the last time."""
        values, messages, letters = self._values, self._messages, self._letters
        self._start()
        offsets = [message.offset() for message in messages]
        batch, misfits = self._types.batch(values, offsets)
        yield from sorted([*letters, *misfits], key=lambda letter: letter.offset or 0)
        if batch is not None and batch.num_rows:
            yield self._with_envelope(batch, offsets, messages)

    def _check_names(self, value: Mapping[str, Any]) -> None:
        for name in self._ours:
            if name in value:
                raise NotARow(f"has a {name!r} of its own, which this source is to fill")

    def _letter(self, message: Any, reason: str) -> DeadLetter:
        origin = f"{self._label}@{message.offset()}"
        return DeadLetter(
            origin, printable(reason), excerpt(message.value() or b""), message.offset()
        )

    def _with_envelope(
        self, batch: pa.RecordBatch, offsets: list[int], messages: list[Any]
    ) -> pa.RecordBatch:
        """Add the columns about the messages themselves that were asked for."""
        options = self._options
        if not self._ours:
            return batch
        kept = pc.index_in(batch[OFFSET], pa.array(offsets, pa.int64())).to_pylist()
        chosen = [messages[i] for i in kept]
        made: tuple[tuple[str | None, Iterable[Any], pa.DataType], ...] = (
            (options.key, map(_key, chosen), pa.string()),
            (options.timestamp, map(_time, chosen), _TIMESTAMP),
            (options.headers, map(_headers, chosen), _HEADERS),
        )
        for name, found, type_ in made:
            if name is not None:
                batch = batch.append_column(name, pa.array(list(found), type_))
        return batch


def _key(message: Any) -> str | None:
    return _text(message.key())


def _time(message: Any) -> int | None:
    kind, milliseconds = message.timestamp()
    return milliseconds if kind else None


def _headers(message: Any) -> list[dict[str, str | None]]:
    return [{"name": name, "value": _text(value)} for name, value in message.headers() or ()]


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "replace")
