"""What a message's value says: JSON as it is, the rest by a Schema Registry."""

from __future__ import annotations

import base64
import datetime
import decimal
import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from penstock.errors import PenstockError, SourceError, SourceUnavailable
from penstock.registry import require
from penstock.sources.formats import parse_object
from penstock.sources.kafka_client import secret

if TYPE_CHECKING:
    from penstock.sources.kafka import KafkaOptions

# One of confluent_kafka's messages -> the row in it.
Decode: TypeAlias = Callable[[Any], dict[str, Any]]

_REGISTRY = "confluent_kafka.schema_registry"
_REFUSED = {401, 403}
_UNKNOWN = 404


class NotARow(Exception):
    """Why a message holds no row."""


def decoder(options: KafkaOptions, folder: Path) -> Decode:
    """The way to read one topic's values.

    Raises:
        SourceError: The registry's settings are wrong.
        MissingExtra: The client library is not installed.
    """
    if options.value == "json":
        return _json
    return _Registered(options, folder)


def _json(message: Any) -> dict[str, Any]:
    try:
        return parse_object(_value(message))
    except ValueError as error:
        raise NotARow(str(error)) from None


def _value(message: Any) -> bytes:
    value: bytes | None = message.value()
    if value is None:
        raise NotARow("no value: a tombstone")
    return value


class _Registered:
    """Values that begin with the id of their schema, or have it in a header."""

    def __init__(self, options: KafkaOptions, folder: Path) -> None:
        assert options.registry is not None
        self._url = options.registry.url
        self._context = require("confluent_kafka.serialization", "kafka")
        self._error = require(f"{_REGISTRY}.error", "kafka").SchemaRegistryError
        client = self._client(self._guarded(), options, folder)
        kinds = {"avro": _avro, "json_schema": _json_schema, "protobuf": _protobuf}
        self._values = kinds[options.value](client)

    def __call__(self, message: Any) -> dict[str, Any]:
        """The row in a message.

        Raises:
            NotARow: It is not of its schema, or has none.
            SourceError: The registry does not answer, or refuses.
        """
        data = _value(message)
        field = self._context.MessageField.VALUE
        context = self._context.SerializationContext(message.topic(), field, message.headers())
        try:
            value = _plain(self._values(data, context))
        except (NotARow, PenstockError):
            raise
        # Decoders of hostile bytes end in IndexError, EOFError, struct.error and others.
        except Exception as error:
            raise NotARow(f"not of its schema: {type(error).__name__}: {error}") from None
        if not isinstance(value, dict):
            raise NotARow(f"expected a record, got {type(value).__name__}")
        return value

    def _guarded(self) -> Any:
        """The client, with our own errors for all that can go wrong between it and the registry.

        They are told apart here, because a decoder's errors make dead letters: a registry
        that is down must not.
        """
        library = require(_REGISTRY, "kafka")
        registered = self

        class Guarded(library.SchemaRegistryClient):  # type: ignore[misc, name-defined]
            def get_schema(self, *given: Any, **more: Any) -> Any:
                return registered._asked(super().get_schema, *given, **more)

            def get_schema_by_guid(self, *given: Any, **more: Any) -> Any:
                return registered._asked(super().get_schema_by_guid, *given, **more)

            def get_version(self, *given: Any, **more: Any) -> Any:
                return registered._asked(super().get_version, *given, **more)

        return Guarded

    def _asked(self, question: Callable[..., Any], *given: Any, **more: Any) -> Any:
        try:
            found = question(*given, **more)
            schema = getattr(found, "schema", found)
            if not schema.schema_str:
                raise ValueError("an answer without a schema")
            return found
        except self._error as error:
            raise self._explained(error) from None
        # What is no HTTP at all, or answers 200 with a page of HTML.
        except Exception as error:
            raise SourceUnavailable(
                f"The Schema Registry at {self._url} does not answer: "
                f"{type(error).__name__}: {error}.",
                "Check registry.url and that it runs.",
            ) from None

    def _explained(self, error: Any) -> Exception:
        status = error.http_status_code
        if status == _UNKNOWN:
            return NotARow(f"its schema is unknown to the registry: {error.error_message}")
        if status in _REFUSED:
            return SourceError(
                f"The Schema Registry at {self._url} refuses: HTTP {status}.",
                "Check registry.username and the password.",
            )
        return SourceUnavailable(
            f"The Schema Registry at {self._url} failed: HTTP {status}: {error.error_message}.",
            "Check that it is the registry and in order.",
        )

    def _client(self, client: Any, options: KafkaOptions, folder: Path) -> Any:
        registry = options.registry
        assert registry is not None
        settings: dict[str, Any] = {
            "url": registry.url,
            "timeout": options.timeout_s,
            "max.retries": 2,
            "retries.wait.ms": 200,
            "retries.max.wait.ms": 1000,
        }
        if registry.username is not None:
            password = secret(registry.password_env, "registry.password_env")
            settings["basic.auth.user.info"] = f"{registry.username}:{password}"
        if registry.ca_file is not None:
            settings["ssl.ca.location"] = str(folder / registry.ca_file)
        try:
            return client(settings)
        except (ValueError, OSError) as error:
            raise SourceError(
                f"registry: the client refuses these settings: {error}.", "Check `registry`."
            ) from None


# Without a subject the schema comes by its id alone: rules of a subject (migrations,
# encrypted fields) are not applied, and nothing else is asked of the registry.
_BY_ID: dict[str, Any] = {"subject.name.strategy": lambda context, name: None}


def _avro(client: Any) -> Any:
    module = require(f"{_REGISTRY}.avro", "kafka")
    return module.AvroDeserializer(client, conf=_BY_ID)


def _json_schema(client: Any) -> Any:
    module = require(f"{_REGISTRY}.json_schema", "kafka")
    return module.JSONDeserializer(None, conf=_BY_ID, schema_registry_client=client)


def _protobuf(client: Any) -> Any:
    """Messages of whatever type the registry says they are.

    The library's own deserializer wants a class made by protoc beforehand. Its parts
    that find schemas, their imports and the type within them are used as they are.
    """
    module = require(f"{_REGISTRY}.protobuf", "kafka")
    serde = require(f"{_REGISTRY}.serde", "kafka")
    empty = require("google.protobuf.empty_pb2", "kafka").Empty
    factory = require("google.protobuf.message_factory", "kafka")
    inner = module.ProtobufDeserializer(empty, _BY_ID, client)

    def read(data: bytes, context: Any) -> dict[str, Any]:
        schema_id = serde.SchemaId("PROTOBUF")
        payload = inner._schema_id_deserializer(data, context, schema_id)
        schema = inner._get_writer_schema(schema_id, None, fmt="serialized")
        file, pool = inner._get_parsed_schema(schema)
        found = pool.FindFileByName(file.name)
        type_ = inner._get_message_desc(pool, found, schema_id.message_indexes or [0])
        message = factory.GetMessageClass(type_)()
        message.ParseFromString(payload.read())
        return _fields(message)

    return read


def _fields(message: Any) -> dict[str, Any]:
    """A Protobuf message's fields by name; an optional one that is not set is null.

    Not ``MessageToDict``: it makes text of 64-bit integers.
    """
    out: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            kind = field.message_type.fields_by_name["value"]
            out[field.name] = {str(key): _field(kind, value[key]) for key in value}
        elif field.is_repeated:
            out[field.name] = [_field(field, item) for item in value]
        elif field.has_presence and not message.HasField(field.name):
            out[field.name] = None
        else:
            out[field.name] = _field(field, value)
    return out


def _field(field: Any, value: Any) -> Any:
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return str(value) if known is None else known.name
    if field.message_type is None:
        return value
    if field.message_type.full_name == "google.protobuf.Timestamp":
        return value.ToJsonString()
    return _fields(value)


def _plain(value: Any) -> Any:
    """A decoded value as JSON's kinds: times as ISO 8601, bytes as Base64, decimals as text.

    Raises:
        NotARow: A number is not finite.
    """
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise NotARow(f"{value} is not a number")
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal | uuid.UUID | datetime.timedelta):
        return str(value)
    return value
