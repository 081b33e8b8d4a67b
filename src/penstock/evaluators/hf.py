"""The model in this process, by lm-eval's ``hf``: transformers, one batch after the other."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any, ClassVar

from penstock.evaluators import harness
from penstock.evaluators.base import Evaluation, usable
from penstock.registry import require
from penstock.section import Section


class HfOptions(Section):
    """There are none: it takes the recipe's settings."""


class HfEvaluator:
    """Transformers in this process."""

    Options: ClassVar[type[Section]] = HfOptions

    def __init__(self, options: HfOptions, folder: Path) -> None:
        self._options = options

    def versions(self) -> dict[str, str]:
        """lm-eval's and transformers'."""
        require("lm_eval", "evaluate")
        return {name: importlib.metadata.version(name) for name in ("lm_eval", "transformers")}

    def run(self, evaluation: Evaluation, advance: harness.Bar) -> dict[str, Any]:
        """Measure the model on the GPU in bfloat16, or on the CPU in float32."""
        harness.quiet()
        require("lm_eval", "evaluate")
        require("lm_eval.models.huggingface", "evaluate")  # its bar can be replaced from now on
        with usable():
            return harness.evaluate(evaluation.asked, "hf", _model_args(evaluation.model), advance)


def _model_args(model: Path) -> dict[str, Any]:
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "pretrained": str(model),
        "dtype": "bfloat16" if on_gpu else "float32",
        "device": "cuda" if on_gpu else "cpu",
        "trust_remote_code": False,
    }
