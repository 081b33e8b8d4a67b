"""Server-sent events out of bytes, however they are cut; WHATWG HTML, 9.2.

Only what OpenAI's API uses is read: ``data`` fields, lines that end with a line feed.
"""

from __future__ import annotations

from penstock.errors import ServingError

_MAX_EVENT_BYTES = 2**20


class EventReader:
    """Collects bytes and gives the events that are whole."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._num_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; returns the data of each event that has ended.

        Raises:
            ServingError: An event is longer than any that a model server sends.
        """
        events: list[bytes] = []
        self._line += data
        if b"\n" in data:
            *lines, rest = self._line.split(b"\n")
            self._line = rest
            for line in lines:
                self._end_line(bytes(line).removesuffix(b"\r"), events)
        if len(self._line) + self._num_bytes > _MAX_EVENT_BYTES:
            raise ServingError("The server behind this model sent an event without end.")
        return events

    def _end_line(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
            self._data, self._num_bytes = [], 0
        elif line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            self._data.append(value)
            self._num_bytes += len(value) + 1
