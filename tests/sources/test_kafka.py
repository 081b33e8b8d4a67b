import contextlib
import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import kafka_broker
from penstock.errors import RecipeError, SourceError, SourceUnavailable
from penstock.recipe_file import load_recipe
from penstock.sources.base import OFFSET, ORIGIN, DeadLetter
from penstock.sources.kafka import KafkaOptions, KafkaSource
from penstock.stages.ingest import Ingester, raw_tables
from penstock.tables import Table
from schema_registry import Registry

_HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def broker():
    with kafka_broker.running() as running:
        yield running


@pytest.fixture
def own_broker():
    """One that a test may stop."""
    with kafka_broker.running() as running:
        yield running


@pytest.fixture
def registry():
    registry = Registry()
    yield registry
    registry.close()


def source(broker, topics, folder=None, **options):
    wanted = {"bootstrap_servers": broker.address, "timeout_s": 10, **options}
    return KafkaSource(KafkaOptions(topics=topics, **wanted), folder or _HERE)


def read(source, unit=None):
    """Rows and letters of a unit, or of all there are."""
    rows, letters = [], []
    for one in [unit] if unit else source.snapshot():
        for piece in source.read(one):
            if isinstance(piece, DeadLetter):
                letters.append(piece)
            else:
                rows += piece.to_pylist()
    return rows, letters


def ingester(source, folder, **more):
    tables = Table(folder / "raw"), Table(folder / "dead")
    return Ingester("orders", source, *tables, folder / "spool", **more)


def committed(table):
    return [row for batch in table.scan() for row in batch.to_pylist()]


# -- pinning -----------------------------------------------------------------------


def test_each_partition_is_a_stream_that_ends_at_the_last_message(broker):
    topic = broker.topic(3)
    broker.send(topic, [{"n": 1}, {"n": 2}], partition=0)
    broker.send(topic, [{"n": 3}], partition=2)
    first, second = source(broker, topic).snapshot()
    assert (first.label, first.position) == (f"{topic}/0", 1)
    assert (second.label, second.position) == (f"{topic}/2", 0)
    assert first.stream.startswith(f"{topic}/0#")
    assert first.divisible


def test_what_arrives_after_pinning_is_not_read(broker):
    topic = broker.topic()
    broker.send(topic, [{"n": 1}])
    reader = source(broker, topic)
    [unit] = reader.snapshot()
    broker.send(topic, [{"n": 2}])
    rows, _ = read(reader, unit)
    assert [row["n"] for row in rows] == [1]
    assert (rows[0][ORIGIN], rows[0][OFFSET]) == (f"{topic}/0@0", 0)


def test_reading_begins_after_what_is_committed(broker):
    topic = broker.topic()
    broker.send(topic, [{"n": n} for n in range(10)])
    reader = source(broker, topic)
    [unit] = reader.snapshot()
    rows, _ = read(reader, replace(unit, after=6))
    assert [row["n"] for row in rows] == [7, 8, 9]


def test_reading_leaves_no_offset_and_no_group_with_the_broker(broker):
    topic = broker.topic()
    broker.send(topic, [{"n": 1}])
    reader = source(broker, topic)
    read(reader)
    [part] = reader._kafka._consumer.committed(
        [reader._kafka._module.TopicPartition(topic, 0)], timeout=10
    )
    assert part.offset < 0


def test_without_topic_ids_the_stream_is_topic_and_partition(broker):
    topic = broker.topic()
    broker.send(topic, [{"n": 1}])
    [unit] = source(broker, topic, topic_id=False).snapshot()
    assert unit.stream == f"{topic}/0"


def test_an_empty_topic_is_said_to_be_empty_and_worth_another_try(broker):
    topic = broker.topic()
    with pytest.raises(SourceUnavailable, match=f"nothing in {topic} yet"):
        source(broker, topic).snapshot()


def test_a_topic_that_does_not_exist_is_refused_with_those_that_do(broker):
    there = broker.topic()
    with pytest.raises(SourceError, match=f"no topic nowhere.*{there}") as error:
        source(broker, "nowhere").snapshot()
    assert not error.value.transient


@pytest.mark.slow
def test_a_batch_has_ten_thousand_rows_at_most(broker):
    topic = broker.topic()
    broker.send(topic, ({"n": n} for n in range(10_001)))
    reader = source(broker, topic)
    [unit] = reader.snapshot()
    assert [piece.num_rows for piece in reader.read(unit)] == [10_000, 1]


# -- messages that are not rows ------------------------------------------------------


def test_poison_messages_become_letters_with_place_reason_and_excerpt(broker):
    topic = broker.topic()
    broker.send(
        topic,
        [{"n": 1}, b"{broken", None, [1, 2], b"\xff\xfe", b'{"n": NaN}', {"n": "text"}, {"n": 2}],
    )
    rows, letters = read(source(broker, topic))
    assert [row["n"] for row in rows] == [1, 2]
    found = {letter.offset: letter for letter in letters}
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert found[1].origin == f"{topic}/0@1"
    assert found[1].excerpt == "{broken"
    assert "tombstone" in found[2].reason
    assert "expected an object, got list" in found[3].reason
    assert "not UTF-8" in found[4].reason
    assert "NaN is not JSON" in found[5].reason
    assert "column n: expected number, got string 'text'" in found[6].reason


def test_no_keys_of_one_message_stop_the_topic(broker, tmp_path):
    topic = broker.topic()
    poison = [
        {"_row_id": 1},
        {f"k{i}": 1 for i in range(1_001)},
        {"n": {f"k{i}": 1 for i in range(1_001)}},
        {"\ud800": 1},
        {"o": {"\ud800": 1}},
    ]
    for value in ({"n": 1}, *poison, {"n": 2}):
        broker.send(topic, [value])
    taking = ingester(source(broker, topic), tmp_path)
    [unit] = taking.source.snapshot()
    taking.take(unit)
    assert [row["n"] for row in committed(taking.table)] == [1, 2]
    origins = [letter["_origin"] for letter in committed(taking.dead)]
    assert origins == [f"{topic}/0@{offset}" for offset in range(1, 6)]


def test_the_message_itself_gives_columns_where_they_are_asked_for(broker):
    topic = broker.topic()
    broker.send(topic, [{"n": 1}], key=b"k1", headers=[("trace", b"abc"), ("none", None)])
    broker.send(topic, [b"poison"])
    broker.send(topic, [{"n": 2}], timestamp=1_700_000_000_123)
    rows, _ = read(source(broker, topic, key="k", timestamp="at", headers="h"))
    assert [row["k"] for row in rows] == ["k1", None]
    assert rows[0]["h"] == [{"name": "trace", "value": "abc"}, {"name": "none", "value": None}]
    assert rows[1]["at"].timestamp() == 1_700_000_000.123


def test_a_value_that_already_has_the_column_for_the_key_is_a_letter(broker):
    topic = broker.topic()
    broker.send(topic, [{"k": "mine"}], key=b"theirs")
    rows, [letter] = read(source(broker, topic, key="k"))
    assert not rows
    assert "'k' of its own" in letter.reason


# -- what is gone ----------------------------------------------------------------------


@pytest.fixture
def shortened(broker):
    """A topic of ten messages whose first six are gone; the first three were ingested."""
    topic = broker.topic()
    for n in range(10):
        broker.send(topic, [{"n": n}])
    [unit] = source(broker, topic).snapshot()
    broker.delete_before(topic, 6)
    return topic, replace(unit, after=2)


def test_messages_that_retention_removed_are_named_and_nothing_goes_on(broker, shortened):
    topic, unit = shortened
    with pytest.raises(SourceError, match=r"offsets 3 to 5 \(3 in all\).*retention") as error:
        read(source(broker, topic), unit)
    assert "on_lost: skip" in error.value.hint


def test_skipping_what_is_lost_leaves_a_letter_that_counts_it(broker, shortened):
    topic, unit = shortened
    rows, [letter] = read(source(broker, topic, on_lost="skip"), unit)
    assert [row["n"] for row in rows] == [6, 7, 8, 9]
    assert (letter.origin, letter.offset) == (f"{topic}/0@3", 5)
    assert "offsets 3 to 5 (3 in all)" in letter.reason


def test_what_was_gone_before_the_first_ingest_is_not_lost(broker, shortened):
    topic, unit = shortened
    rows, letters = read(source(broker, topic), replace(unit, after=-1))
    assert [row["n"] for row in rows] == [6, 7, 8, 9]
    assert not letters


def test_a_unit_that_is_gone_as_a_whole_is_one_letter(broker):
    topic = broker.topic()
    for n in range(4):
        broker.send(topic, [{"n": n}])
    [unit] = source(broker, topic).snapshot()
    broker.send(topic, [{"n": 4}])
    broker.delete_before(topic, 4)
    rows, [letter] = read(source(broker, topic, on_lost="skip"), replace(unit, after=0))
    assert not rows
    assert "offsets 1 to 3 (3 in all)" in letter.reason


def test_a_topic_made_anew_is_another_stream_and_the_old_one_cannot_be_read(broker):
    topic = broker.topic()
    broker.send(topic, [{"n": 1}, {"n": 2}])
    [old] = source(broker, topic).snapshot()
    broker.delete(topic)
    broker.topic(name=topic)
    broker.send(topic, [{"n": n} for n in range(5)])
    [new] = source(broker, topic).snapshot()
    assert new.stream != old.stream
    with pytest.raises(SourceError, match=r"offsets 0 to 1 \(2 in all\).*made anew"):
        read(source(broker, topic), old)
    rows, [letter] = read(source(broker, topic, on_lost="skip"), old)
    assert (rows, letter.offset) == ([], 1)


def test_a_topic_made_anew_while_it_is_read_commits_nothing(broker, monkeypatch):
    topic = broker.topic()
    broker.send(topic, [{"n": 1}])
    reader = source(broker, topic)
    [unit] = reader.snapshot()
    answers = iter([False, True])
    monkeypatch.setattr(KafkaSource, "_is_another", lambda *_: next(answers))
    with pytest.raises(SourceUnavailable, match="made anew while it was read"):
        read(reader, unit)


@pytest.mark.slow
def test_a_partition_that_ends_before_what_was_pinned_is_said_to_be_shorter(broker):
    topic = broker.topic()
    broker.send(topic, [{"n": n} for n in range(8)])
    [unit] = source(broker, topic, topic_id=False).snapshot()
    broker.delete(topic)
    broker.topic(name=topic)
    broker.send(topic, [{"n": n} for n in range(3)])
    plain = {"topic_id": False}
    with pytest.raises(SourceError, match=r"offsets 5 to 7 .*ends at 2"):
        read(source(broker, topic, **plain), replace(unit, after=4))
    rows, [letter] = read(source(broker, topic, on_lost="skip", **plain), replace(unit, after=4))
    assert (rows, letter.offset) == ([], 7)


def test_a_gap_at_the_end_of_a_unit_ends_it(broker, monkeypatch):
    # A compacted topic or the mark of a transaction: the pinned offset itself holds nothing.
    topic = broker.topic()
    broker.send(topic, [{"n": n} for n in range(3)])
    reader = source(broker, topic)
    [unit] = reader.snapshot()
    real = reader._kafka._consumer

    class WithoutTheLast:
        """Passes everything on but the message at the unit's end."""

        def __getattr__(self, name):
            return getattr(real, name)

        def consume(self, *arguments):
            found = real.consume(*arguments)
            return [m for m in found if m.error() or m.offset() != unit.position]

    monkeypatch.setitem(reader._kafka.__dict__, "_consumer", WithoutTheLast())
    assert [row["n"] for row in read(reader, unit)[0]] == [0, 1]
    broker.send(topic, [{"n": 3}])
    assert [row["n"] for row in read(reader, unit)[0]] == [0, 1]


# -- brokers that do not answer ----------------------------------------------------------


@pytest.mark.slow
def test_a_broker_that_is_not_there_is_given_up_after_the_time_allowed():
    nobody = KafkaSource(
        KafkaOptions(topics="t", bootstrap_servers="127.0.0.1:1", timeout_s=0.5), _HERE
    )
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:1 has sent nothing.*0\.5 s"):
        nobody.snapshot()


@pytest.mark.slow
def test_a_broker_that_goes_down_while_it_is_read_is_an_error_and_later_none(own_broker):
    topic = own_broker.topic()
    own_broker.send(topic, [{"n": n} for n in range(3)])
    reader = source(own_broker, topic, timeout_s=1)
    [unit] = reader.snapshot()
    own_broker.down()
    with pytest.raises(SourceUnavailable, match="has sent nothing"):
        read(reader, unit)
    own_broker.up()
    patient = source(own_broker, topic)
    assert len(read(patient, unit)[0]) == 3


@pytest.mark.slow
def test_a_broker_that_speaks_no_tls_is_an_error_that_says_so(broker):
    reader = source(broker, "t", security={"protocol": "ssl"}, timeout_s=4)
    with pytest.raises(SourceUnavailable, match="SSL_HANDSHAKE") as error:
        reader.snapshot()
    assert "`security`" in error.value.hint


def test_certificates_that_are_not_there_are_refused_before_anything_is_sent(broker):
    reader = source(broker, "t", security={"protocol": "ssl", "ca_file": "nowhere.pem"})
    with pytest.raises(SourceError, match=r"refuses these settings.*ssl\.ca\.location"):
        reader.snapshot()


# -- settings and secrets ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"value": "avro"}, "value avro needs a registry"),
        ({"registry": {"url": "http://r"}}, "value json needs no registry"),
        ({"key": "k", "headers": "k"}, "columns of their own"),
        ({"security": {"protocol": "sasl_ssl"}}, "needs username and password_env"),
        ({"security": {"username": "u", "password_env": "P"}}, "sends no password"),
        ({"security": {"protocol": "ssl", "key_file": "k"}}, "needed together"),
        ({"value": "avro", "registry": {"url": "http://u:p@r"}}, "does not belong into url"),
        ({"value": "avro", "registry": {"url": "http://r", "username": "u"}}, "together"),
        ({"topics": []}, "at least 1"),
        ({"timeout_s": 0}, "greater than 0"),
        ({"password": "hunter2"}, "Extra inputs"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong, said):
    with pytest.raises(ValidationError, match=said):
        KafkaOptions(**{"topics": "t", "bootstrap_servers": "b:9092", **wrong})


_RECIPE = """
name: demo
sources:
  orders:
    type: kafka
    topics: orders
    bootstrap_servers: ${BROKERS}
    security: {protocol: sasl_ssl, username: me, password_env: KAFKA_PASSWORD}
    MORE
evaluate: {tasks: [t]}
gate: {min: {t: 0.5}}
"""


def test_a_mistake_in_a_recipe_is_one_line_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("BROKERS", "secret-host:9092")
    path = tmp_path / "recipe.yaml"
    path.write_text(_RECIPE.replace("MORE", "on_lost: ignore"))
    with pytest.raises(RecipeError, match=r"line 9, sources\.orders\.on_lost") as error:
        load_recipe(path)
    assert "secret-host" not in error.value.message


def test_where_the_brokers_are_changes_no_table(tmp_path, monkeypatch):
    path, names = tmp_path / "recipe.yaml", []
    for brokers, more in (("a:1", ""), ("b:2", "on_lost: skip"), ("b:2", "topic_id: false")):
        monkeypatch.setenv("BROKERS", brokers)
        path.write_text(_RECIPE.replace("MORE", more))
        names.append(raw_tables(load_recipe(path)))
    assert names[0] == names[1] != names[2]


def test_a_password_that_is_not_in_the_environment_is_missed_by_name(monkeypatch):
    monkeypatch.delenv("KAFKA_PASSWORD", raising=False)
    security = {"protocol": "sasl_ssl", "username": "me", "password_env": "KAFKA_PASSWORD"}
    options = KafkaOptions(topics="t", bootstrap_servers="127.0.0.1:1", security=security)
    with pytest.raises(SourceError, match="no variable 'KAFKA_PASSWORD'"):
        KafkaSource(options, _HERE).snapshot()


def test_the_client_gets_the_password_and_no_message_shows_it(monkeypatch, tmp_path):
    monkeypatch.setenv("KAFKA_PASSWORD", "hunter2")
    security = {
        "protocol": "sasl_plaintext",
        "mechanism": "PLAIN",
        "username": "me",
        "password_env": "KAFKA_PASSWORD",
        "ca_file": "ca.pem",
    }
    options = KafkaOptions(
        topics="t", bootstrap_servers="127.0.0.1:1", security=security, timeout_s=0.3
    )
    reader = KafkaSource(options, tmp_path)
    given = reader._kafka._settings()
    assert given["sasl.password"] == "hunter2"
    assert given["ssl.ca.location"] == str(tmp_path / "ca.pem")
    assert given["sasl.mechanism"] == "PLAIN"
    with pytest.raises(SourceError) as error:
        reader.snapshot()
    assert "hunter2" not in f"{error.value} {error.value.hint} {options}"


# -- Schema Registry ----------------------------------------------------------------------


_AVRO = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "n", "type": "long"},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "raw", "type": "bytes"},
    ],
}
_JSON_SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "Order",
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0}},
    "required": ["n"],
}


def _serialised(registry, topic, kind, values):
    """Values as the real client's serialisers write them."""
    from confluent_kafka.schema_registry import SchemaRegistryClient, topic_subject_name_strategy
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.schema_registry.json_schema import JSONSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    client = SchemaRegistryClient({"url": registry.url})
    conf = {"subject.name.strategy": topic_subject_name_strategy}
    if kind == "avro":
        write = AvroSerializer(client, json.dumps(_AVRO), conf=conf)
    else:
        write = JSONSerializer(json.dumps(_JSON_SCHEMA), client, conf=conf)
    context = SerializationContext(topic, MessageField.VALUE)
    return [write(value, context) for value in values]


@pytest.mark.slow
def test_avro_values_are_read_by_the_schema_they_were_written_with(broker, registry):
    topic = broker.topic()
    values = [{"n": 2**40, "note": None, "at": 1_700_000_000_000, "raw": b"\x00\xff"}]
    values.append({"n": 2, "note": "ü", "at": 0, "raw": b""})
    broker.send(topic, _serialised(registry, topic, "avro", values))
    rows, letters = read(source(broker, topic, value="avro", registry={"url": registry.url}))
    assert not letters
    assert [row["n"] for row in rows] == [2**40, 2]
    assert [row["note"] for row in rows] == [None, "ü"]
    assert rows[0]["at"] == "2023-11-14T22:13:20+00:00"
    assert rows[0]["raw"] == "AP8="


def test_a_schema_is_asked_for_once_and_nothing_else_is(broker, registry):
    topic = broker.topic()
    values = [{"n": n, "note": None, "at": 0, "raw": b""} for n in range(50)]
    broker.send(topic, _serialised(registry, topic, "avro", values))
    registry.asked.clear()
    read(source(broker, topic, value="avro", registry={"url": registry.url}))
    assert [line.partition("?")[0] for line in registry.asked] == ["GET /schemas/ids/1"]


def test_json_schema_values_are_checked(broker, registry):
    topic = broker.topic()
    good, bad = _serialised(registry, topic, "json_schema", [{"n": 1}, {"n": 7}])
    broker.send(topic, [good, bad.replace(b"7", b"-7")])
    options = {"value": "json_schema", "registry": {"url": registry.url}}
    rows, [letter] = read(source(broker, topic, **options))
    assert [row["n"] for row in rows] == [1]
    assert "-7 is less than the minimum" in letter.reason


def test_protobuf_values_need_no_generated_class(broker, registry):
    import base64

    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="order.proto", package="shop", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    order = file.message_type.add(name="Order")
    kinds = descriptor_pb2.FieldDescriptorProto
    order.field.add(name="n", number=1, type=kinds.TYPE_INT64, label=1)
    order.field.add(name="tags", number=2, type=kinds.TYPE_STRING, label=3)
    at = order.field.add(name="at", number=3, type=kinds.TYPE_MESSAGE, label=1)
    at.type_name = ".google.protobuf.Timestamp"
    pool = descriptor_pool.Default()
    __import__("google.protobuf.timestamp_pb2")
    pool.Add(file)
    type_ = message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Order"))
    message = type_(n=2**40, tags=["a", "b"])
    message.at.FromMilliseconds(1_700_000_000_000)

    text = base64.b64encode(file.SerializeToString()).decode()
    id_ = registry._register("orders-value", {"schemaType": "PROTOBUF", "schema": text})
    framed = struct.pack(">bI", 0, id_) + b"\x00"
    topic = broker.topic()
    broker.send(topic, [framed + message.SerializeToString(), framed + b"\xff\xff\xff"])
    options = {"value": "protobuf", "registry": {"url": registry.url}}
    [row], [letter] = read(source(broker, topic, **options))
    assert (row["n"], row["tags"], row["at"]) == (2**40, ["a", "b"], "2023-11-14T22:13:20Z")
    assert letter.offset == 1


def test_values_of_no_or_an_unknown_schema_are_letters(broker, registry):
    topic = broker.topic()
    unknown = struct.pack(">bI", 0, 999) + b"x" * 8
    broker.send(topic, [b"{}", b"", None, unknown, b"\x00\x00\x00", b"\x07" * 20])
    options = {"value": "avro", "registry": {"url": registry.url}}
    rows, letters = read(source(broker, topic, **options))
    assert not rows
    assert [letter.offset for letter in letters] == [0, 1, 2, 3, 4, 5]
    assert "unknown to the registry" in letters[3].reason


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=st.binary(max_size=40), kind=st.sampled_from(["avro", "json_schema", "protobuf"]))
def test_no_bytes_at_all_stop_the_reading(registry, value, kind):
    from penstock.sources.kafka_values import NotARow, decoder

    registry._register("s", {"schema": json.dumps(_AVRO)})
    settings_ = {"value": kind, "registry": {"url": registry.url}}
    decode = decoder(KafkaOptions(topics="t", bootstrap_servers="b", **settings_), _HERE)

    class Message:
        topic, headers = (lambda _: "t"), (lambda _: None)

        def value(self):
            return b"\x00\x00\x00\x00\x01" + value

    with contextlib.suppress(NotARow):
        assert isinstance(decode(Message()), dict)


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (500, SourceUnavailable, "failed: HTTP 500"),
        (429, SourceUnavailable, "failed: HTTP 429"),
        (401, SourceError, "refuses: HTTP 401"),
        (200, SourceUnavailable, "does not answer"),  # the wrong answer to the right question
    ],
)
def test_a_registry_out_of_order_is_an_error_and_makes_no_letters(
    broker, registry, status, error, said
):
    topic = broker.topic()
    broker.send(topic, [struct.pack(">bI", 0, 1) + b"x" * 8])
    registry.status = status
    options = {"value": "avro", "registry": {"url": registry.url}}
    with pytest.raises(error, match=said) as raised:
        read(source(broker, topic, **options))
    assert raised.value.transient == (status != 401)


def test_a_registry_that_is_not_there_is_an_error(broker):
    topic = broker.topic()
    broker.send(topic, [struct.pack(">bI", 0, 1) + b"x" * 8])
    options = {"value": "avro", "registry": {"url": "http://127.0.0.1:1"}}
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:1 does not answer"):
        read(source(broker, topic, **options))


def test_a_registry_with_a_password_gets_it_from_the_environment(broker, monkeypatch):
    monkeypatch.setenv("REGISTRY_PASSWORD", "hunter2")
    guarded = Registry("me:hunter2")
    options = {"url": guarded.url, "username": "me", "password_env": "REGISTRY_PASSWORD"}
    topic = broker.topic()
    guarded._register("s", {"schema": json.dumps(_AVRO)})
    broker.send(topic, [struct.pack(">bI", 0, 1) + b"\x02\x00\x00\x00"])
    rows, _ = read(source(broker, topic, value="avro", registry=options))
    assert [row["n"] for row in rows] == [1]
    monkeypatch.setenv("REGISTRY_PASSWORD", "wrong")
    with pytest.raises(SourceError, match="refuses: HTTP 401") as error:
        read(source(broker, topic, value="avro", registry=options))
    assert "wrong" not in f"{error.value} {error.value.hint}"
    guarded.close()


# -- into a table --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_long_unit_is_committed_in_parts_and_gives_the_same_rows(broker, tmp_path):
    topic = broker.topic()
    broker.send(topic, [b"bad" if n % 7 == 3 else {"n": n} for n in range(50)])
    reader, ids = source(broker, topic), []
    [unit] = reader.snapshot()
    for part in (1000, 9):
        folder = tmp_path / str(part)
        taking = ingester(reader, folder, part=part)
        taking.take(unit)
        rows = committed(taking.table)
        ids.append([row["_row_id"] for row in rows])
        assert [row["n"] for row in rows] == [n for n in range(50) if n % 7 != 3]
        assert len(committed(taking.dead)) == 7
        # One version with the columns, then one for each part.
        assert taking.table.version() == (1 if part == 1000 else 6)
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 43


def test_a_type_that_changes_along_the_stream_is_a_letter_and_holds_nothing_up(broker, tmp_path):
    topic = broker.topic()
    reader = source(broker, topic)
    taking = ingester(reader, tmp_path)
    for values in (
        [{"n": 1, "o": {"a": 1}}],
        [{"n": "two", "o": {"a": 2}}],
        [{"n": 3.5}, {"n": 3.0}, {"n": 4, "o": {"a": "x"}}, {"n": 5}],
    ):
        broker.send(topic, values)
        [unit] = reader.snapshot()
        taking.take(unit)
    assert [row["n"] for row in committed(taking.table)] == [1, 3, 5]
    reasons = {row["_origin"]: row["reason"] for row in committed(taking.dead)}
    assert reasons == {
        f"{topic}/0@1": "column 'n' is string, was int64",
        f"{topic}/0@2": "column 'n' holds a value that does not fit int64",
        f"{topic}/0@4": "column 'o' is struct<a: string>, was struct<a: int64>",
    }


# -- a real broker -------------------------------------------------------------------------


@pytest.mark.skipif("PENSTOCK_TEST_KAFKA" not in os.environ, reason="names no broker")
class TestRealBroker:
    """``PENSTOCK_TEST_KAFKA=localhost:9092``: what the mock cluster gets wrong."""

    @pytest.fixture
    def real(self):
        return kafka_broker.Broker(os.environ["PENSTOCK_TEST_KAFKA"])

    def _producer(self, real):
        from confluent_kafka import Producer

        settings_ = {"bootstrap.servers": real.address, "transactional.id": os.urandom(4).hex()}
        producer = Producer(settings_)
        producer.init_transactions(30)
        return producer

    def test_aborted_messages_are_not_read_and_marks_end_units(self, real, tmp_path):
        topic, producer = real.topic(), self._producer(real)
        for n, keep in ((1, True), (2, False), (3, True)):
            producer.begin_transaction()
            producer.produce(topic, json.dumps({"n": n}).encode())
            producer.commit_transaction(30) if keep else producer.abort_transaction(30)
        taking = ingester(source(real, topic), tmp_path)
        [unit] = taking.source.snapshot()
        taking.take(unit)
        assert [row["n"] for row in committed(taking.table)] == [1, 3]
        assert taking.table.position(unit.stream) == unit.position

    def test_an_open_transaction_is_not_waited_for(self, real):
        topic, producer = real.topic(), self._producer(real)
        real.send(topic, [{"n": 0}])
        producer.begin_transaction()
        producer.produce(topic, b'{"n": 1}')
        producer.flush(30)
        rows, _ = read(source(real, topic))
        assert [row["n"] for row in rows] == [0]
        producer.commit_transaction(30)
        assert [row["n"] for row in read(source(real, topic))[0]] == [0, 1]

    def test_partitions_that_a_topic_gains_are_read_from_their_start(self, real, tmp_path):
        from confluent_kafka.admin import AdminClient, NewPartitions

        topic = real.topic()
        real.send(topic, [{"n": 0}])
        taking = ingester(source(real, topic), tmp_path)
        for unit in taking.source.snapshot():
            taking.take(unit)
        admin = AdminClient({"bootstrap.servers": real.address})
        admin.create_partitions([NewPartitions(topic, 2)])[topic].result(30)
        kafka_broker.Broker(real.address).send(topic, [{"n": 1}], partition=1)
        for unit in taking.source.snapshot():
            taking.take(unit)
        assert [row["n"] for row in committed(taking.table)] == [0, 1]

    def test_a_topic_made_anew_has_another_id(self, real):
        from confluent_kafka.admin import AdminClient

        topic = real.topic()
        real.send(topic, [{"n": 0}])
        [old] = source(real, topic).snapshot()
        AdminClient({"bootstrap.servers": real.address}).delete_topics([topic])[topic].result(30)
        real.topic(name=topic)
        kafka_broker.Broker(real.address).send(topic, [{"n": 0}])
        [new] = source(real, topic).snapshot()
        assert new.stream != old.stream


def test_batches_are_arrow_with_origin_and_offset(broker):
    topic = broker.topic()
    broker.send(topic, [{"n": 1}])
    [piece] = [p for u in source(broker, topic).snapshot() for p in source(broker, topic).read(u)]
    assert piece.schema.field(OFFSET).type == pa.int64()
    assert piece.schema.field(ORIGIN).type == pa.string()
