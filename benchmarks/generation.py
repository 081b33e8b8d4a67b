"""Our default backend against ``transformers.generate``, in output tokens.

Both generate greedily from the same prompts with the same 6M-parameter Llama in
fp32. Ours streams every answer, as the gateway uses it; transformers computes
all prompts as one static batch, which is its best case. Rounds alternate
between the two, and the figure is the median of the rounds' ratios, because a
shared machine's speed drifts by more than the difference between two readings.
Beside tokens per second of the clock stand tokens per second of processor time,
which other programs on the machine disturb less.

    python benchmarks/generation.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

from penstock.serving.backends.base import Generation, ModelFiles
from penstock.serving.backends.ctranslate2 import CTranslate2Backend

PROMPT_TOKENS = 32


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        model = save_llama_6m(folder)
        backend = CTranslate2Backend(ModelFiles(folder, Path(scratch) / "cache"))
        backend.load()
        print(f"{describe()}; {options.rounds} rounds of {options.tokens} tokens\n")
        print("| requests at once | per second of | penstock | transformers.generate "
              "| ratio (median) | ratios |")  # fmt: skip
        print("|---|---|---|---|---|---|")
        for concurrency in (1, 16):
            print(rows(backend, model, concurrency, options.rounds, options.tokens), flush=True)
        backend.close()


def rows(backend, model, concurrency: int, num_rounds: int, max_tokens: int) -> str:
    """The table's rows for one concurrency: by the clock and by processor time."""
    generator = random.Random(0)
    readings = []
    for _ in range(num_rounds + 1):
        prompts = [
            tuple(generator.randrange(3, model.config.vocab_size) for _ in range(PROMPT_TOKENS))
            for _ in range(concurrency)
        ]
        readings.append(
            (
                speeds(lambda p=prompts: asyncio.run(ours(backend, p, max_tokens))),
                speeds(lambda p=prompts: theirs(model, p, max_tokens)),
            )
        )
    # The first round warmed up.
    return "\n".join(
        row(concurrency, unit, [(a[index], b[index]) for a, b in readings[1:]])
        for index, unit in enumerate(("clock", "processor"))
    )


def row(concurrency: int, unit: str, pairs: list[tuple[float, float]]) -> str:
    """One row: medians, and the median of the rounds' ratios."""
    ratios = [ours_read / theirs_read for ours_read, theirs_read in pairs]
    ours_median, theirs_median = (statistics.median(column) for column in zip(*pairs, strict=True))
    return (
        f"| {concurrency} | {unit} | {ours_median:.0f} | {theirs_median:.0f} "
        f"| {statistics.median(ratios):.1f} | {min(ratios):.1f} to {max(ratios):.1f} |"
    )


def speeds(generate) -> tuple[float, float]:
    """Tokens per second of the clock and of processor time."""
    clock_s, processor_s = time.perf_counter(), time.process_time()
    num_tokens = generate()
    return (
        num_tokens / (time.perf_counter() - clock_s),
        num_tokens / (time.process_time() - processor_s),
    )


async def ours(backend, prompts, max_tokens: int) -> int:
    """Tokens of streams that run at once."""
    return sum(await asyncio.gather(*(stream(backend, prompt, max_tokens) for prompt in prompts)))


async def stream(backend, prompt, max_tokens: int) -> int:
    """Tokens of one streamed answer."""
    request = Generation(prompt, max_tokens, temperature=0.0)
    return sum([len(chunk.token_ids) async for chunk in backend.generate(request)])


def theirs(model, prompts, max_tokens: int) -> int:
    """Tokens of one static batch."""
    import torch

    prompt_ids = torch.tensor(prompts)
    with torch.inference_mode():
        output = model.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=2,
        )
    return int((output[:, PROMPT_TOKENS:] != 2).sum())


def save_llama_6m(folder: Path):
    """A randomly initialised Llama of 6M parameters with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=names, initial_alphabet=alphabet)
    bpe.train_from_iterator([f"word{number}" for number in range(8_000)], trainer)
    bpe.add_tokens([f" filler{number}" for number in range(4_096 - bpe.get_vocab_size())])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=names[0], eos_token=names[1], pad_token=names[2]
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=5,
        num_attention_heads=8,
        max_position_embeddings=1_024,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def describe() -> str:
    """The machine and the day."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, {date.today()}"


if __name__ == "__main__":
    main()
