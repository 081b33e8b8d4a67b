"""A GitHub Actions workflow that evaluates a registered model, gates it and promotes it.

What a person types into the form reaches the steps in environment variables only,
never in the text of a script. Actions are pinned by commit. The file carries a
digest of itself, which tells an older export from one that somebody has edited.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from penstock import __version__
from penstock.errors import RecipeError
from penstock.exported import marked

PATH = Path(".github/workflows/model-evaluation.yml")

# Current releases as of November 2026, by commit: a tag can be moved, a commit cannot.
_CHECKOUT = "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2"
_SETUP_PYTHON = "actions/setup-python@a309ff8b426b58ec0e2a45f0f869d46889d02405 # v6.2.0"
_UPLOAD = "actions/upload-artifact@b7c566a772e6b6bfb58ed0dc250532a479d7789f # v6.0.0"

_Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/-]*$")]
# One word, or NAME @ URL, as pip takes them.
_Requirement = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][^\s\"'$`\\;|&]*( @ [^\s\"'$`\\;|&]+)?$"),
]
# Without it there is no MLflow in the environment that asks the registry.
_WITH_REGISTRY = re.compile(r"[^@\[]*\[[^\]]*\b(registry|all)\b")


class WorkflowOptions(BaseModel):
    """What differs between two teams' workflows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[_Word, ...] = Field(
        ("mmlu", "hellaswag", "truthfulqa"), min_length=1, description="lm-eval tasks."
    )
    min: dict[_Word, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default_factory=lambda: {"mmlu": 0.65, "hellaswag": 0.75}, description="Task -> floor."
    )
    max_regression: float = Field(
        0.02, ge=0, allow_inf_nan=False, description="What may be lost against what serves."
    )
    model_name: str = Field(
        "", pattern=r"^[A-Za-z0-9_.-]*$", description="Stands in the form already."
    )
    stage: str = Field("production", pattern=r"^[a-z][a-z0-9_-]*$", description="The alias.")
    backend: _Word = Field("vllm", description="lm-eval's --model.")
    model_args: str = Field(
        "dtype=auto,gpu_memory_utilization=0.8",
        pattern=r"^[A-Za-z0-9_.,=/-]*$",
        description="lm-eval's --model_args, beside the folder.",
    )
    task_dir: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_./-]+$", description="A folder of task YAMLs in the repository."
    )
    labels: tuple[_Word, ...] = Field(
        ("self-hosted", "linux", "gpu"), min_length=1, description="The runner's."
    )
    python: str = Field("3.11", pattern=r"^3\.\d+$", description="Python's version.")
    penstock: _Requirement = Field(
        f"penstock[registry,postgres]=={__version__}",
        description="What pip installs for the penstock command.",
    )
    lm_eval: _Requirement = Field(
        "lm_eval[vllm]==0.4.13", description="What pip installs to evaluate."
    )
    timeout_minutes: int = Field(720, ge=5, le=7200, description="Of the whole job.")

    @classmethod
    def checked(cls, **values: Any) -> WorkflowOptions:
        """The options, or what is wrong with them in words.

        Raises:
            RecipeError: A value would not be one word in a script or a name in YAML.
        """
        try:
            options = cls.model_validate(values)
        except ValidationError as error:
            wrong = [
                f"--{str(one['loc'][0]).replace('_', '-')}: received {one['input']!r}: {one['msg']}"
                for one in error.errors()
            ]
            raise RecipeError("\n".join(wrong), "Such values end up in a script.") from None
        if options.task_dir is not None and (
            ".." in PurePosixPath(options.task_dir).parts or options.task_dir.startswith("/")
        ):
            raise RecipeError(f"--task-dir {options.task_dir} leaves the repository.")
        if not _WITH_REGISTRY.match(options.penstock):
            raise RecipeError(
                f"--penstock {options.penstock!r} installs nothing that talks to MLflow.",
                "Name the extras: 'penstock[registry,postgres] @ git+https://HOST/penstock@TAG'",
            )
        return options


def workflow(options: WorkflowOptions) -> str:
    """The workflow's YAML, ending with a line feed."""
    body = _TEMPLATE
    for name, value in _values(options).items():
        body = body.replace(f"@{name}@", value)
    return marked(_HEAD, body)


def _values(options: WorkflowOptions) -> dict[str, str]:
    """What stands in the template, each as YAML or as words of a script."""
    floors = [f"--min {shlex.quote(f'{task}={floor:g}')}" for task, floor in options.min.items()]
    task_dir = f" --include_path {shlex.quote(options.task_dir)}" if options.task_dir else ""
    return {
        "CHECKOUT": _CHECKOUT,
        "SETUP_PYTHON": _SETUP_PYTHON,
        "UPLOAD": _UPLOAD,
        "TASKS": json.dumps(",".join(options.tasks)),
        "FLOORS": " ".join(floors),
        "MAX_REGRESSION": f"{options.max_regression:g}",
        "NAME_DEFAULT": json.dumps(options.model_name),
        "STAGE": json.dumps(options.stage),
        "BACKEND": f"${{{{ vars.EVAL_BACKEND || '{options.backend}' }}}}",
        "MODEL_ARGS": f"${{{{ vars.EVAL_MODEL_ARGS || '{options.model_args}' }}}}",
        "TASK_DIR": task_dir,
        # An expression also because linters know no labels of one's own.
        "LABELS": f"${{{{ fromJSON(vars.EVAL_RUNNER || '{json.dumps(list(options.labels))}') }}}}",
        "PYTHON": json.dumps(options.python),
        "PENSTOCK": json.dumps(options.penstock),
        "LM_EVAL": json.dumps(options.lm_eval),
        "TIMEOUT": str(options.timeout_minutes),
    }


_HEAD = """\
# Written by: penstock export github
# To change it, export it again with other options; edited files are not overwritten.
"""
_TEMPLATE = """\
name: Model evaluation

on:
  workflow_dispatch:
    inputs:
      model_version:
        description: The registered version to evaluate, such as 7
        required: true
        type: string
      model_name:
        description: The registered model, such as catalog.schema.model
        required: true
        type: string
        default: @NAME_DEFAULT@

permissions:
  contents: read

# One at a time for each model: two would compare with the same serving version.
concurrency:
  group: model-evaluation-${{ inputs.model_name }}
  cancel-in-progress: false

defaults:
  run:
    shell: bash

jobs:
  evaluate:
    name: Evaluate, gate, promote
    runs-on: @LABELS@
    timeout-minutes: @TIMEOUT@
    env:
      # Inputs are read from here and stand in no script: what is typed there is never run.
      MODEL_NAME: ${{ inputs.model_name }}
      MODEL_VERSION: ${{ inputs.model_version }}
      STAGE: @STAGE@
      TASKS: @TASKS@
      EVAL_BACKEND: @BACKEND@
      EVAL_MODEL_ARGS: @MODEL_ARGS@
      MLFLOW_TRACKING_URI: ${{ vars.MLFLOW_TRACKING_URI }}
    steps:
      - name: Check the inputs
        timeout-minutes: 1
        run: |
          if ! [[ "$MODEL_VERSION" =~ ^[1-9][0-9]{0,8}$ ]]; then
            echo "::error::model_version must be a number, such as 7"
            exit 1
          fi
          if ! [[ "$MODEL_NAME" =~ ^[A-Za-z0-9][A-Za-z0-9_.-]*$ ]]; then
            echo "::error::model_name must be a name, such as catalog.schema.model"
            exit 1
          fi
          : "${MLFLOW_TRACKING_URI:?Set the variable MLFLOW_TRACKING_URI}"

      - name: Check out
        uses: @CHECKOUT@
        timeout-minutes: 10
        with:
          persist-credentials: false

      - name: Set up Python
        uses: @SETUP_PYTHON@
        timeout-minutes: 10
        with:
          python-version: @PYTHON@

      # Two environments: what evaluates pins libraries that the registry's client does not want.
      - name: Install
        timeout-minutes: 60
        env:
          PENSTOCK: @PENSTOCK@
          LM_EVAL: @LM_EVAL@
        run: |
          python -m venv "$RUNNER_TEMP/penstock"
          "$RUNNER_TEMP/penstock/bin/python" -m pip install --quiet "$PENSTOCK"
          python -m venv "$RUNNER_TEMP/lm_eval"
          "$RUNNER_TEMP/lm_eval/bin/python" -m pip install --quiet "$LM_EVAL"

      - name: Download the candidate
        timeout-minutes: 120
        env:
          MLFLOW_TRACKING_USERNAME: ${{ secrets.MLFLOW_TRACKING_USERNAME }}
          MLFLOW_TRACKING_PASSWORD: ${{ secrets.MLFLOW_TRACKING_PASSWORD }}
        run: |
          "$RUNNER_TEMP/penstock/bin/penstock" model download --tracking "$MLFLOW_TRACKING_URI" \\
            --model-name "$MODEL_NAME" --version "$MODEL_VERSION" \\
            --output-dir "$RUNNER_TEMP/candidate"

      - name: Ask what serves now
        id: serving
        timeout-minutes: 10
        env:
          PENSTOCK_LEDGER: ${{ secrets.PENSTOCK_LEDGER }}
          MLFLOW_TRACKING_USERNAME: ${{ secrets.MLFLOW_TRACKING_USERNAME }}
          MLFLOW_TRACKING_PASSWORD: ${{ secrets.MLFLOW_TRACKING_PASSWORD }}
        run: |
          : "${PENSTOCK_LEDGER:?Set the secret PENSTOCK_LEDGER}"
          version=$("$RUNNER_TEMP/penstock/bin/penstock" model serving \\
            --model-name "$MODEL_NAME" --stage "$STAGE")
          if [ "$version" = "$MODEL_VERSION" ]; then
            echo "::error::this version serves already"
            exit 1
          fi
          echo "version=$version" >>"$GITHUB_OUTPUT"

      - name: Download what serves
        if: steps.serving.outputs.version != ''
        timeout-minutes: 120
        env:
          SERVING: ${{ steps.serving.outputs.version }}
          MLFLOW_TRACKING_USERNAME: ${{ secrets.MLFLOW_TRACKING_USERNAME }}
          MLFLOW_TRACKING_PASSWORD: ${{ secrets.MLFLOW_TRACKING_PASSWORD }}
        run: |
          "$RUNNER_TEMP/penstock/bin/penstock" model download --tracking "$MLFLOW_TRACKING_URI" \\
            --model-name "$MODEL_NAME" --version "$SERVING" --output-dir "$RUNNER_TEMP/serving"

      - name: Evaluate the candidate
        env:
          HF_TOKEN: ${{ secrets.HF_TOKEN }}
        run: |
          "$RUNNER_TEMP/lm_eval/bin/python" -m lm_eval --model "$EVAL_BACKEND" \\
            --model_args "pretrained=$RUNNER_TEMP/candidate${EVAL_MODEL_ARGS:+,$EVAL_MODEL_ARGS}" \\
            --tasks "$TASKS"@TASK_DIR@ --batch_size auto \\
            --output_path "$RUNNER_TEMP/report/results/candidate" --log_samples

      # Again, and not from an earlier run: the same backend, library and machine for both.
      - name: Evaluate what serves
        if: steps.serving.outputs.version != ''
        env:
          HF_TOKEN: ${{ secrets.HF_TOKEN }}
        run: |
          "$RUNNER_TEMP/lm_eval/bin/python" -m lm_eval --model "$EVAL_BACKEND" \\
            --model_args "pretrained=$RUNNER_TEMP/serving${EVAL_MODEL_ARGS:+,$EVAL_MODEL_ARGS}" \\
            --tasks "$TASKS"@TASK_DIR@ --batch_size auto \\
            --output_path "$RUNNER_TEMP/report/results/serving" --log_samples

      # Exit code 3 is BLOCK, 4 is INCONCLUSIVE; both end the job here, with the report written.
      - name: Gate
        timeout-minutes: 30
        env:
          SERVING: ${{ steps.serving.outputs.version }}
        run: |
          baseline=()
          if [ -n "$SERVING" ]; then
            baseline=(--baseline "$RUNNER_TEMP/report/results/serving")
          fi
          "$RUNNER_TEMP/penstock/bin/penstock" gate --summary \\
            --results "$RUNNER_TEMP/report/results/candidate" "${baseline[@]}" \\
            @FLOORS@ --max-regression @MAX_REGRESSION@ \\
            --decision "$RUNNER_TEMP/report/decision.json" --html "$RUNNER_TEMP/report/gate.html"

      - name: Promote
        timeout-minutes: 60
        env:
          SERVING: ${{ steps.serving.outputs.version }}
          PENSTOCK_LEDGER: ${{ secrets.PENSTOCK_LEDGER }}
          MLFLOW_TRACKING_USERNAME: ${{ secrets.MLFLOW_TRACKING_USERNAME }}
          MLFLOW_TRACKING_PASSWORD: ${{ secrets.MLFLOW_TRACKING_PASSWORD }}
        run: |
          : "${PENSTOCK_LEDGER:?Set the secret PENSTOCK_LEDGER}"
          "$RUNNER_TEMP/penstock/bin/penstock" promote --model-name "$MODEL_NAME" \\
            --version "$MODEL_VERSION" --stage "$STAGE" --expect "${SERVING:-none}" \\
            --tested "$RUNNER_TEMP/candidate" --decision "$RUNNER_TEMP/report/decision.json" \\
            --reason "GitHub run $GITHUB_RUN_ID of $GITHUB_ACTOR"

      - name: Keep the report
        if: always()
        uses: @UPLOAD@
        timeout-minutes: 30
        with:
          name: model-evaluation
          path: ${{ runner.temp }}/report
          if-no-files-found: ignore
"""
