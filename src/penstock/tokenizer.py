"""Tokenizers as files: trained, loaded and saved in transformers' form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.errors import RecipeError
from penstock.registry import require

# The label of a token that is not learned: torch's cross entropy leaves it out.
IGNORED = -100
# For models trained from scratch: one token a role, and one that ends a turn.
TURN_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] "
    "+ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def load_tokenizer(folder: Path | str, revision: str | None = None) -> Any:
    """Load a tokenizer without running anybody's code.

    Raises:
        MissingExtra: transformers is not installed.
        RecipeError: There is no tokenizer there.
    """
    transformers = require("transformers", "train")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder), revision=revision or "main", trust_remote_code=False
        )
    # A damaged file makes the tokenizers library raise Exception itself.
    except Exception as error:
        raise RecipeError(
            f"No tokenizer can be loaded from {folder}: {error}",
            "It needs tokenizer.json and tokenizer_config.json, whole; and a hub that is "
            "reached, for one from there.",
        ) from None


def num_embeddings(folder: Path | str, revision: str | None = None) -> int:
    """How many tokens a model's configuration says it has embeddings for.

    Raises:
        MissingExtra: transformers is not installed.
        RecipeError: There is no configuration of a language model there.
    """
    transformers = require("transformers", "train")
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(folder), revision=revision or "main", trust_remote_code=False
        )
        return int(config.get_text_config().vocab_size)
    except (OSError, ValueError, AttributeError) as error:
        raise RecipeError(f"No language model can be loaded from {folder}: {error}") from None


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer in transformers' form, the same bytes however it was loaded."""
    # transformers writes down where it had it from, which differs by HF_HUB_OFFLINE.
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def train_tokenizer(texts: Any, vocab_size: int, chat_template: str | None, folder: Path) -> int:
    """Train a byte-level BPE tokenizer and save it in transformers' form.

    Args:
        texts: Iterator over texts.
        vocab_size: Upper bound; a small corpus gives fewer tokens.
        chat_template: Jinja; None takes ``CHAT_TEMPLATE``.
        folder: Where to save it.

    Returns:
        The size of its vocabulary.
    """
    tokenizers = require("tokenizers", "train")
    transformers = require("transformers", "train")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(TURN_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",  # noqa: S106
        # A conversation begins where another has ended; and some engines
        # cannot load a model without a token to begin with.
        bos_token="<|end|>",  # noqa: S106
        eos_token="<|end|>",  # noqa: S106
        additional_special_tokens=list(TURN_TOKENS[2:]),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template or CHAT_TEMPLATE
    save_tokenizer(fast, folder)
    return int(fast.vocab_size)
