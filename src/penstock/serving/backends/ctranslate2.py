"""Generation by CTranslate2: the fastest engine we measured on CPU.

A transformers folder is converted once and kept. Several static batches run
beside each other, so a request that arrives while one is computed does not
wait for its end.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from penstock.errors import ServingError
from penstock.hub import go_offline
from penstock.ledger import is_dead, this_process
from penstock.registry import require
from penstock.section import Section
from penstock.serving.backends.base import Backend, Capability, Chunk, Generation, ModelFiles
from penstock.serving.jobs import Job, JobQueue
from penstock.serving.model_text import LOADING, ModelText

# CTranslate2 computes a batch's common prompt length at once and replays the
# rest of longer prompts token by token: this bounds the replay.
_MAX_SPREAD_TOKENS = 64
_CONVERTING = ".converting-"
# A conversion of another host that is older than this and not finished is given up.
_STALE_CONVERSION_S = 3_600
_RANDOM_SEED = 2**32 - 1  # CTranslate2's own word for "seed from the machine's entropy"
# CTranslate2's seed is one global, read when a thread draws its first number.
_seeding = threading.Lock()


class CTranslate2Options(Section):
    """What a recipe may set."""

    parallel_batches: int = Field(2, ge=1, description="Batches computed at once.")
    threads_per_batch: int | None = Field(
        None,
        ge=1,
        description="Null: the cores divided among the batches. More threads than cores made one "
        "request four times slower.",
    )
    max_batch: int = Field(32, ge=1, description="Requests in a batch.")


class CTranslate2Backend(Backend):
    """One model version in CTranslate2, fp32 (int8 was slower and diverged)."""

    Options = CTranslate2Options
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"generate"})

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        options = CTranslate2Options.model_validate(files.options)
        self._num_parallel = options.parallel_batches
        self._num_threads = options.threads_per_batch or max(1, _num_cores() // self._num_parallel)
        self._queue = JobQueue(options.max_batch, _MAX_SPREAD_TOKENS)
        self._workers: list[threading.Thread] = []
        self._generator: Any = None

    @property
    def _text(self) -> ModelText:
        return self._files.text

    def load(self) -> None:
        """Convert the model if that was not done before, load it and warm it up."""
        if self._num_threads > 1:
            # OpenMP's threads otherwise spin while they wait for each other. With two
            # of them on two cores that others used too, that cost nine tenths of the
            # speed. Read when CTranslate2 is imported.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._generator = self._new_generator(self._num_parallel)
        with _seeding:
            self._warm_up()
        for number in range(self._num_parallel):
            worker = threading.Thread(target=self._work, name=f"ctranslate2-{number}", daemon=True)
            worker.start()
            self._workers.append(worker)

    async def generate(self, request: Generation) -> AsyncGenerator[Chunk, None]:
        """Stream one answer; greedy answers equal transformers' token for token."""
        job = Job(request, self._text)
        self._queue.put(job)
        async for chunk in job.chunks():
            yield chunk

    def close(self) -> None:
        """Stop the threads and free the weights."""
        self._queue.close()
        for worker in self._workers:
            worker.join()
        self._generator = None

    def _new_generator(self, num_parallel: int) -> Any:
        ctranslate2 = require("ctranslate2", "serve")
        # Made again if a run has swept it since: a version may outstay its pointer here.
        folder = converted_model(self._files)
        try:
            return ctranslate2.Generator(
                str(folder),
                device="cpu",
                compute_type="float32",
                inter_threads=num_parallel,
                intra_threads=self._num_threads,
            )
        except RuntimeError as error:
            raise ServingError(f"CTranslate2 cannot load {folder}: {error}") from error

    def _warm_up(self) -> None:
        """Touch the weights, and let every thread seed its random numbers now.

        A thread that drew its first number later could pick up the seed of
        somebody's seeded request.
        """
        require("ctranslate2", "serve").set_random_seed(_RANDOM_SEED)
        prompt = [self._text.tokens([min(self._text.eos_ids, default=0)])]
        pending = self._generator.generate_batch(
            prompt * self._num_parallel,
            max_batch_size=1,
            max_length=4,
            asynchronous=True,
            sampling_topk=0,
        )
        for result in pending:
            result.result()

    def _work(self) -> None:
        while batch := self._queue.take():
            with self._queue.computing(batch):
                self._compute(batch)

    def _compute(self, batch: list[Job]) -> None:
        if not batch[0].alone:
            self._generate(self._generator, batch)
            return
        seed = batch[0].request.seed or 0
        with _seeding:
            # Only a new generator's thread reads the seed. Loading one took 50 ms
            # for 6M parameters; seeded sampling is for debugging.
            require("ctranslate2", "serve").set_random_seed(seed % _RANDOM_SEED)
            self._generate(self._new_generator(1), batch)

    def _generate(self, generator: Any, batch: list[Job]) -> None:
        lengths = [len(job.request.prompt_ids) for job in batch]
        replayed = [length - min(lengths) for length in lengths]
        eos_ids = self._text.eos_ids

        def stop_after(step: Any) -> bool:
            row, token_id = int(step.batch_id), int(step.token_id)
            job = batch[row]
            if step.step < replayed[row]:
                return job.cancelled
            if token_id in eos_ids:
                job.finish("stop")
                return True
            return job.push(token_id)

        temperature, top_p = batch[0].sampling
        generator.generate_batch(
            [self._text.tokens(job.request.prompt_ids) for job in batch],
            max_length=max(
                skip + job.request.max_tokens for skip, job in zip(replayed, batch, strict=True)
            ),
            include_prompt_in_result=False,
            end_token=sorted(eos_ids) or None,
            sampling_topk=0 if temperature > 0 else 1,
            sampling_temperature=temperature or 1.0,
            sampling_topp=top_p,
            callback=stop_after,
        )


def _num_cores() -> int:
    """Cores this process may use: fewer than the machine's in a container or a worker of Ray."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and int(limit) > 0:
        return min(int(limit), _num_allowed())
    return _num_allowed()


def _num_allowed() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def converted_model(files: ModelFiles) -> Path:
    """The model in CTranslate2's format, converted at the first call.

    The conversion is staged beside its place and renamed, so nobody ever sees
    half of one, and of two processes that convert at once one result is kept.

    Raises:
        ServingError: CTranslate2 cannot convert this model.
    """
    version = require("ctranslate2", "serve").__version__
    target = files.cache / f"ctranslate2-{version}-float32"
    _sweep_dead_conversions(files.cache)
    if target.is_dir():
        return target
    files.cache.mkdir(parents=True, exist_ok=True)
    staged = files.cache / f"{_CONVERTING}{this_process()}-{uuid.uuid4().hex}"
    try:
        _convert(files.path, staged)
        _rename_once(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def _convert(folder: Path, staged: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        # Other weight files are pickles, and a pickle may run code.
        raise ServingError(f"{folder} holds no safetensors weights.")
    go_offline()
    converters = require("ctranslate2.converters", "serve")
    require("torch", "serve")
    require("transformers", "serve").utils.logging.disable_progress_bar()
    try:
        with LOADING:
            converters.TransformersConverter(str(folder), trust_remote_code=False).convert(
                str(staged), quantization="float32"
            )
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        raise ServingError(
            f"CTranslate2 cannot convert {folder}: {error}",
            "Set backend: transformers, which serves every causal language model.",
        ) from error
    for file in staged.iterdir():
        with file.open("rb+") as written:
            os.fsync(written.fileno())


def _rename_once(staged: Path, target: Path) -> None:
    try:
        staged.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # Another process was first; its result is as good.


def _sweep_dead_conversions(cache: Path) -> None:
    for staged in cache.glob(f"{_CONVERTING}*"):
        holder = staged.name.removeprefix(_CONVERTING).rpartition("-")[0]
        if is_dead(holder) or _age_s(staged) > _STALE_CONVERSION_S:
            shutil.rmtree(staged, ignore_errors=True)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # just now renamed, or swept by another process
        return 0.0
