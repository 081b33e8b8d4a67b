"""Generation by transformers' own ``generate``: slower, but runs every causal model.

On a GPU where there is one, in bf16; else on the CPU in fp32.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from pydantic import Field

from penstock.errors import ServingError
from penstock.hub import go_offline
from penstock.registry import require
from penstock.section import Section
from penstock.serving.backends.base import Backend, Capability, Chunk, Generation, ModelFiles
from penstock.serving.jobs import Job, JobQueue
from penstock.serving.model_text import LOADING, ModelText

# Shorter prompts are padded to the longest of their batch.
_MAX_SPREAD_TOKENS = 64
# torch's random numbers are one global of the process.
_seeding = threading.Lock()


class TransformersOptions(Section):
    """What a recipe may set."""

    max_batch: int = Field(16, ge=1, description="Requests in a batch.")


class TransformersBackend(Backend):
    """One model version in transformers; one batch at a time."""

    Options = TransformersOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"generate"})

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        options = TransformersOptions.model_validate(files.options)
        self._queue = JobQueue(options.max_batch, _MAX_SPREAD_TOKENS)
        self._worker = threading.Thread(target=self._work, name="transformers", daemon=True)
        self._model: Any = None

    @property
    def _text(self) -> ModelText:
        return self._files.text

    def load(self) -> None:
        """Load the weights and generate a token, so the first request is not the slow one."""
        if not any(self._files.path.glob("*.safetensors")):
            # Other weight files are pickles, and a pickle may run code.
            raise ServingError(f"{self._files.path} holds no safetensors weights.")
        go_offline()
        transformers = require("transformers", "serve")
        torch = require("torch", "serve")
        transformers.utils.logging.disable_progress_bar()
        on_gpu = torch.cuda.is_available()
        try:
            with LOADING:
                self._model = transformers.AutoModelForCausalLM.from_pretrained(
                    self._files.path,
                    # On CPUs bf16 is emulated and about 80 times slower than fp32.
                    dtype=torch.bfloat16 if on_gpu else torch.float32,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                )
                self._model = self._model.to("cuda" if on_gpu else "cpu").eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ServingError(f"transformers cannot load {self._files.path}: {error}") from error
        self._model.generation_config = self._quiet_defaults(transformers)
        with torch.inference_mode():
            start = torch.zeros((1, 1), dtype=torch.long, device=self._model.device)
            self._model.generate(start, max_new_tokens=1)
        self._worker.start()

    async def generate(self, request: Generation) -> AsyncGenerator[Chunk, None]:
        """Stream one answer."""
        job = Job(request, self._text)
        self._queue.put(job)
        async for chunk in job.chunks():
            yield chunk

    def close(self) -> None:
        """Stop the thread and free the weights."""
        self._queue.close()
        if self._worker.ident is not None:
            self._worker.join()
        self._model = None

    def _quiet_defaults(self, transformers: Any) -> Any:
        """Only what a request asks for, not what the model's folder suggests (top_k: 50)."""
        pad = min(self._text.eos_ids, default=0)
        return transformers.GenerationConfig(
            eos_token_id=sorted(self._text.eos_ids) or None, pad_token_id=pad, top_k=0
        )

    def _work(self) -> None:
        while batch := self._queue.take():
            with self._queue.computing(batch):
                self._compute(batch)

    def _compute(self, batch: list[Job]) -> None:
        torch = require("torch", "serve")
        temperature, top_p = batch[0].sampling
        sampling: dict[str, object] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
        prompts, mask = self._padded(batch)
        with torch.inference_mode(), _seeded(torch, batch[0]):
            self._model.generate(
                prompts,
                attention_mask=mask,
                max_new_tokens=max(job.request.max_tokens for job in batch),
                stopping_criteria=[_Delivery(torch, batch, self._text.eos_ids)],
                **sampling,
            )

    def _padded(self, batch: list[Job]) -> tuple[Any, Any]:
        """Prompts padded at the left, and the mask that hides the padding."""
        torch = require("torch", "serve")
        prompts = [job.request.prompt_ids for job in batch]
        length = max(len(prompt) for prompt in prompts)
        ids = torch.zeros((len(prompts), length), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = 1
        return ids.to(self._model.device), mask.to(self._model.device)


class _Delivery:
    """A stopping criterion, which ``generate`` asks after every token: hands them out."""

    def __init__(self, torch: Any, batch: list[Job], eos_ids: frozenset[int]) -> None:
        self._torch = torch
        self._batch = batch
        self._eos_ids = eos_ids

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        newest = input_ids[:, -1].tolist()
        stop = [self._deliver(job, token) for job, token in zip(self._batch, newest, strict=True)]
        return self._torch.tensor(stop, dtype=self._torch.bool, device=input_ids.device)

    def _deliver(self, job: Job, token_id: int) -> bool:
        if job.done:
            return True
        if token_id in self._eos_ids:
            job.finish("stop")
            return True
        return job.push(token_id)


@contextlib.contextmanager
def _seeded(torch: Any, job: Job) -> Any:
    """Random numbers that only depend on the job's seed, if it has one."""
    if not job.alone:
        yield
        return
    devices = range(torch.cuda.device_count())
    with _seeding, torch.random.fork_rng(devices=devices):
        torch.manual_seed(job.request.seed)
        yield
