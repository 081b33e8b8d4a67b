"""How many tokens were read and written, also where only a server elsewhere could count them.

The counts of a model whose tokenizer is here are exact. A server elsewhere may count
wrong, or lie, so its numbers are believed only between two bounds that hold for every
tokenizer we know:

- at least one token for 16 bytes of the text that was sent or received;
- prompts: at most a token a byte, and 1,000 for what templates and system prompts add;
- answers: at most what was asked for, which includes thoughts that are not shown. Where
  nobody asked for a limit, at most a token a byte, or what was set aside.

What is outside, and what a server does not say at all, is counted here: a token for 4
bytes, and for answers at least one for each piece of the stream, but never more than
was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.serving.backends.base import Chunk, Generation, Usage

_BYTES_PER_TOKEN = 4
_MOST_BYTES_PER_TOKEN = 16
_MOST_ADDED_TOKENS = 1_000


def believed(claimed: int | None, num_bytes: int, most: int, least_estimate: int = 0) -> int:
    """A server's count of the tokens of a text, or ours if that cannot be.

    Args:
        claimed: What the server says; None is nothing.
        num_bytes: Of the text in UTF-8.
        most: So many tokens it can have.
        least_estimate: Ours is not below this.
    """
    least = min(-(-num_bytes // _MOST_BYTES_PER_TOKEN), most)
    if claimed is not None and least <= claimed <= most:
        return claimed
    return min(max(-(-num_bytes // _BYTES_PER_TOKEN), least_estimate), most)


def believed_read(claimed: int | None, texts: Sequence[str], most: int | None = None) -> int:
    """Tokens of what a server read.

    Args:
        claimed: What it says; None is nothing.
        texts: What it was sent.
        most: Bytes it may have read, if more than these, because it reads some repeatedly.
    """
    num_bytes = sum(len(text.encode()) for text in texts)
    return believed(claimed, num_bytes, (most or num_bytes) + _MOST_ADDED_TOKENS)


class TokenCounts:
    """Counts one answer's tokens while it grows.

    Args:
        generation: What was asked.
        exact: The model's tokenizer is here, and its chunks say their token ids.

    Attributes:
        exact: As given.
        read: The prompt's.
        written: The answer's so far.
    """

    def __init__(self, generation: Generation, exact: bool) -> None:
        self._asked = generation
        self.exact = exact
        self._num_bytes = self._num_pieces = 0
        self.written = 0
        self.read = len(generation.prompt_ids) if exact else self._read(None)

    def add(self, chunk: Chunk) -> None:
        """Count a chunk."""
        if self.exact:
            self.written += len(chunk.token_ids)
            return
        if chunk.text:
            self._num_bytes += len(chunk.text.encode())
            self._num_pieces += 1
        if chunk.usage is not None:
            self.read = self._read(chunk.usage)
        claimed = None if chunk.usage is None else chunk.usage.completion_tokens
        self.written = believed(claimed, self._num_bytes, self._most, self._num_pieces)

    @property
    def _most(self) -> int:
        asked = self._asked
        return max(asked.max_tokens, self._num_bytes) if asked.open_ended else asked.max_tokens

    def _read(self, usage: Usage | None) -> int:
        asked = self._asked
        texts = [turn["content"] for turn in asked.turns] or [asked.text or ""]
        return believed_read(None if usage is None else usage.prompt_tokens, texts)
