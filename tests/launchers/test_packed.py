"""Rows in one block, on real models: each is learned from as if it were alone."""

import pyarrow as pa
import pytest

from penstock.errors import TrainingError
from penstock.launchers.packed import Blocks, keep_apart
from penstock.transforms.pack import Packer

pytestmark = pytest.mark.slow  # imports torch and transformers

IGNORED = -100
ROWS = [[1, 5, 9, 2], [7, 3, 3, 8, 4, 2], [6, 2], [9, 9, 1, 4, 4, 1, 5, 2]]


def llama():
    import torch
    import transformers

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def mamba():
    import transformers

    config = transformers.MambaConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def blocks_of(rows, apart=True):
    table = pa.table(
        {
            "_row_id": [str(i) for i in range(len(rows))],
            "input_ids": pa.array(rows, pa.list_(pa.int32())),
            "labels": pa.array([[IGNORED, *row[1:]] for row in rows], pa.list_(pa.int32())),
        }
    )
    packer = Packer(12, "whole", apart)
    packed = [*packer.add(table), *packer.finish()]
    return [block for one in packed for block in one.blocks.to_pylist()]


def test_the_loss_of_packed_rows_is_the_loss_of_the_rows_alone():
    import torch

    model = llama()
    keep_apart(model)
    blocks = blocks_of(ROWS)
    assert len(blocks) < len(ROWS)
    with torch.no_grad():
        together = model(**Blocks(0)(blocks)).loss
        alone, num = 0.0, 0
        for row in ROWS:
            ids = torch.tensor([row])
            alone += float(model(input_ids=ids, labels=ids).loss) * (len(row) - 1)
            num += len(row) - 1
    assert float(together) == pytest.approx(alone / num, rel=1e-5)


def test_padding_is_not_learned_and_changes_nothing():
    import torch

    model, blocks = llama(), blocks_of(ROWS)
    keep_apart(model)
    with torch.no_grad():
        short = model(**Blocks(0)(blocks[-1:])).logits[0]
        wide = model(**Blocks(11)(blocks)).logits[-1][: len(short)]
    assert torch.allclose(short, wide, atol=1e-5)
    batch = Blocks(11)(
        [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    )
    assert batch["labels"].tolist() == [[1, 2, 3], [4, IGNORED, IGNORED]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 1]]


def test_a_model_that_keeps_rows_apart_passes_and_stays_in_training():
    model = llama().train()
    keep_apart(model)
    assert model.training


def test_with_a_cache_rows_would_see_each_other_and_that_is_noticed(monkeypatch):
    """Of this the check must be able to tell: it is how the model comes out of its folder."""
    model = llama()
    config = type(model.config)
    monkeypatch.setattr(config, "__setattr__", lambda *_: None)
    assert model.config.use_cache
    with pytest.raises(TrainingError, match="does not keep"):
        keep_apart(model)


def test_a_model_whose_code_does_not_keep_rows_apart_is_refused():
    with pytest.raises(TrainingError, match="does not keep packed rows apart") as caught:
        keep_apart(mamba())
    assert "packed_attention: across" in caught.value.hint
