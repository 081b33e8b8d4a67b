"""Batches of blocks in which several rows stand side by side, and do not see each other.

The model is given no attention mask, and positions that begin anew with each row:
transformers then lets every row see itself alone, also on CPU. Not every model's
code does that, so it is tried on the model at hand before it is trained.
"""

from __future__ import annotations

from typing import Any

from penstock.errors import TrainingError
from penstock.tokenizer import IGNORED

# Lengths of the rows in a block; examples that have none are not packed.
LENGTHS = "seq_lengths"
_TOLERANCE = 1e-4


def collator(rows: Any, tokenizer: Any) -> Any:
    """What makes batches of ``rows``: ours for blocks, None (TRL's own) for all others."""
    if LENGTHS not in rows.column_names:
        return None
    return Blocks(tokenizer.pad_token_id or 0)


class Blocks:
    """Blocks -> tensors of shape (blocks, longest block)."""

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad on the right; what is padded is a row of its own, and nothing is learned of it."""
        import torch

        width = max(len(block["input_ids"]) for block in blocks)
        columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
        for block in blocks:
            num_tokens = len(block["input_ids"])
            room = width - num_tokens
            lengths = [*(block.get(LENGTHS) or [num_tokens]), room]
            columns["input_ids"].append([*block["input_ids"], *[self._pad] * room])
            columns["labels"].append([*block["labels"], *[IGNORED] * room])
            columns["position_ids"].append([place for n in lengths for place in range(n)])
        return {name: torch.tensor(values) for name, values in columns.items()}


def keep_apart(model: Any) -> None:
    """Make a model read each row of a block as if it were alone, and try whether it does.

    Rows that follow from a cache of earlier ones cannot be told apart, so there is none.

    Raises:
        TrainingError: Its code does not keep rows apart.
    """
    import torch

    first, second = [1, 2, 3, 4, 5], [3, 1, 4, 1, 5, 2]
    model.config.use_cache = False
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            together = _logits(model, [first, second])[len(first) :]
            alone = _logits(model, [second])
    finally:
        model.train(was_training)
    difference = float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-6))
    if not difference < _TOLERANCE:
        raise TrainingError(
            f"{type(model).__name__} does not keep packed rows apart: what a row says changes "
            f"by {difference:.2g} when another stands before it.",
            "Set train.packed_attention: across, and rows see the ones before them; "
            "or leave train.packing out.",
        )


def _logits(model: Any, rows: list[list[int]]) -> Any:
    ids = [token for row in rows for token in row]
    block = {"input_ids": ids, "labels": ids, LENGTHS: [len(row) for row in rows]}
    batch = {name: values.to(model.device) for name, values in Blocks(0)([block]).items()}
    batch.pop("labels")
    return model(**batch).logits[0].float()
