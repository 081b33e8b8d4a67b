"""A Kafka broker for tests: librdkafka's mock cluster, in a process of its own.

It speaks the protocol over loopback and keeps messages in memory. It knows neither
transactions nor passwords. Its commands are C functions that the Python client does
not offer, hence ctypes.
"""

import contextlib
import ctypes
import glob
import json
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator

import confluent_kafka


class Broker:
    """A running broker; ``None`` for a server process means one that runs elsewhere."""

    def __init__(self, address: str, server: "subprocess.Popen[str] | None" = None) -> None:
        self.address = address
        self._server = server
        self._producer = None

    def topic(self, partitions: int = 1, name: str = "") -> str:
        """Create a topic; returns its name."""
        name = name or f"t{uuid.uuid4().hex[:8]}"
        if self._server is not None:
            self._do("create", name, partitions)
            return name
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": self.address})
        admin.create_topics([NewTopic(name, partitions, 1)])[name].result(30)
        return name

    def send(self, topic: str, values: Iterable, partition: int = 0, **more) -> None:
        """Append messages: bytes and None as they are, all else as JSON."""
        self._producer = self._producer or confluent_kafka.Producer(
            {
                "bootstrap.servers": self.address,
                "log_level": 0,
                "linger.ms": 5,
                "compression.type": "zstd",
            }
        )
        for value in values:
            if not isinstance(value, bytes | None):
                value = json.dumps(value).encode()
            while True:
                with contextlib.suppress(BufferError):
                    self._producer.produce(topic, value, partition=partition, **more)
                    break
                self._producer.poll(0.1)
        assert self._producer.flush(30) == 0

    def delete(self, topic: str) -> None:
        """Delete a topic."""
        self._do("delete", topic)
        self._producer = None

    def delete_before(self, topic: str, offset: int, partition: int = 0) -> None:
        """Remove the oldest messages, as retention does."""
        self._do("delete_records", topic, partition, offset)

    def down(self) -> None:
        """Stop listening, and cut all connections."""
        self._do("down")

    def up(self) -> None:
        """Listen again."""
        self._do("up")

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait(10)

    def _do(self, *command) -> None:
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline().strip()
        assert answer == "0", f"{command}: {answer or 'the broker has died'}"


@contextlib.contextmanager
def running() -> Iterator[Broker]:
    """Start a broker with one node."""
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    broker = Broker(server.stdout.readline().strip(), server)
    try:
        yield broker
    finally:
        broker.close()


def _library() -> ctypes.CDLL:
    """The librdkafka in confluent_kafka's own wheel."""
    [path] = glob.glob(confluent_kafka.__path__[0] + ".libs/librdkafka*")
    library = ctypes.CDLL(path)
    library.rd_kafka_conf_new.restype = ctypes.c_void_p
    library.rd_kafka_conf_set.argtypes = [ctypes.c_void_p, *[ctypes.c_char_p] * 3, ctypes.c_size_t]
    library.rd_kafka_new.restype = ctypes.c_void_p
    library.rd_kafka_new.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t,
    ]  # fmt: skip
    library.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_new.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    library.rd_kafka_mock_cluster_bootstraps.argtypes = [ctypes.c_void_p]
    for name, kinds in {
        "topic_create": [ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
        "topic_delete": [ctypes.c_char_p],
        "partition_delete_records": [ctypes.c_char_p, ctypes.c_int32, ctypes.c_int64],
        "set_controller_id": [ctypes.c_int32],
        "broker_set_down": [ctypes.c_int32],
        "broker_set_up": [ctypes.c_int32],
    }.items():
        getattr(library, f"rd_kafka_mock_{name}").argtypes = [ctypes.c_void_p, *kinds]
    return library


def serve() -> None:
    """Print the address, then obey standard input until it ends."""
    library, said = _library(), ctypes.create_string_buffer(512)
    settings = library.rd_kafka_conf_new()
    library.rd_kafka_conf_set(settings, b"log_level", b"0", said, 512)
    cluster = library.rd_kafka_mock_cluster_new(library.rd_kafka_new(0, settings, said, 512), 1)
    # Without one, questions to the controller (topic ids are such) are never answered.
    library.rd_kafka_mock_set_controller_id(cluster, 1)
    commands = {
        "create": lambda name, count: library.rd_kafka_mock_topic_create(
            cluster, name.encode(), count, 1
        ),
        "delete": lambda name: library.rd_kafka_mock_topic_delete(cluster, name.encode()),
        "delete_records": lambda name, part, offset: library.rd_kafka_mock_partition_delete_records(
            cluster, name.encode(), part, offset
        ),
        "down": lambda: library.rd_kafka_mock_broker_set_down(cluster, 1),
        "up": lambda: library.rd_kafka_mock_broker_set_up(cluster, 1),
    }
    print(library.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(commands[name](*arguments), flush=True)


if __name__ == "__main__":
    serve()
