"""What tasks do in Airflow; exported DAG files hold these functions as they stand here.

So they use the standard library, Airflow and its providers, and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from typing import Any

import httpx
from airflow.sdk.exceptions import AirflowException, AirflowFailException

log = logging.getLogger(__name__)


def run_command(command: list[str]) -> dict[str, Any]:
    """Run penstock, and return its last line, which is JSON. Exit code 2 is not tried again."""
    said = ["it said nothing"]
    with tempfile.TemporaryFile("w+") as answer:
        process = subprocess.Popen(  # noqa: S603  # what the recipe names
            command,
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for line in process.stderr or ():
            log.info(line.rstrip())
            said = [*said[-2:], line.strip()]
        code = process.wait()
        if code:
            kind = AirflowFailException if code == 2 else AirflowException
            raise kind(f"penstock ended with code {code}: {' '.join(said)}")
        answer.seek(0)
        result: dict[str, Any] = json.loads(answer.read().splitlines()[-1])
        return result


def run_stage(command: list[str], set_values: str = "{}") -> dict[str, Any]:
    """Run a stage on this host; what it came to is the task's XCom."""
    for name, value in json.loads(set_values).items():
        command = [*command, "--set", f"{name}={json.dumps(value)}"]
    return run_command(command)


def is_due(command: list[str], **context: Any) -> bool:
    """Whether the rest of the run is due; people are told if it is not because of bad data."""
    result = run_command(command)
    log.info("status %s %s", result["status"], result["reason"])
    if result["status"] == "FAILED":
        for tell in context["task"].on_failure_callback or ():
            tell({**context, "exception": result["reason"]})
    return bool(result["goes_on"])


def post_notice(context: Any, variable: str) -> None:
    """Tell the webhook whose address is in an environment variable what failed."""
    ti = context["ti"]
    notice = {
        "dag": ti.dag_id,
        "run": ti.run_id,
        "task": ti.task_id,
        "try": ti.try_number,
        "reason": str(context.get("exception") or "")[:1000],
        "log": getattr(ti, "log_url", None),
    }
    try:
        httpx.post(os.environ[variable], json=notice, timeout=10).raise_for_status()
    except Exception as error:  # the address may be a secret, and is part of most messages
        log.error("the webhook in %s was not told: %s", variable, type(error).__name__)
