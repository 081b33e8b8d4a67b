"""Model folders for tests: Llamas of a few thousand parameters, made in a second."""

from pathlib import Path

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "water flows through the penstock into the turbine",
    "café naïve 漢字 😀 🎉 Ω",
    "def main(argument): return argument + 1",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('The system message must come first') }}{% endif %}"
    "<s>{{ message.role }}: {{ message.content }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def save_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE):
    """A byte-level BPE tokenizer; its tokens can end within a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_llama(
    folder: Path,
    seed: int = 0,
    context_length: int = 256,
    hidden_size: int = 32,
    num_key_value_heads: int = 2,
    tie_word_embeddings: bool = False,
):
    """A randomly initialised Llama with its tokenizer; returns the model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = save_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=context_length,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=tie_word_embeddings,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def save_trained_llama(folder: Path, num_steps: int = 80):
    """A Llama that learned ``TEXTS`` by heart, so it ends its answers; returns the model."""
    import torch
    from transformers import AutoTokenizer

    num_threads = torch.get_num_threads()
    # On so small a model, threads wait for each other longer than they compute.
    torch.set_num_threads(1)
    model = save_llama(folder, seed=1, hidden_size=64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [[0, *tokenizer.encode(text), 1] for text in TEXTS]
    length = max(map(len, rows))
    ids = torch.tensor([row + [1] * (length - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (length - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(num_steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(num_threads)
    model.eval().save_pretrained(folder)
    return model
