"""What speaks to Ray: ``python -m penstock.launchers.ray_driver MAILBOX OPTIONS``."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.errors import TrainingError
from penstock.launchers.mailbox import Mailbox
from penstock.launchers.worker import work

_OBJECT_STORE_BYTES = 128 << 20


def main(folder: str, written: str) -> int:
    """Train what is in the mailbox on Ray's workers; returns the exit status."""
    mailbox, options = Mailbox(Path(folder)), json.loads(written)
    mailbox.end_with_the_launcher()
    from ray.train import TrainingFailedError

    try:
        with _connected(options):
            _trainer(mailbox, options).fit()
    except TrainingError as error:
        mailbox.fail(error)
        return 1
    except TrainingFailedError as error:
        print(str(error).strip())
        return 1
    return 0


def _trainer(mailbox: Mailbox, options: dict[str, Any]) -> Any:
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    cpus, gpus = options["cpus_per_worker"], options["gpus_per_worker"]
    return TorchTrainer(
        _work,
        train_loop_config={"mailbox": str(mailbox.folder), "threads": cpus},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=options["workers"],
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=train.RunConfig(
            name="training",
            storage_path=str(mailbox.folder / "ray"),
            failure_config=train.FailureConfig(max_failures=options["max_restarts"]),
        ),
    )


@contextmanager
def _connected(options: dict[str, Any]) -> Iterator[None]:
    """Ray, there; one that was started for this is gone afterwards."""
    import ray

    # Ray's sockets are below this folder, and their names may not be long.
    folder = Path(tempfile.mkdtemp(prefix="penstock-ray-", dir="/tmp"))
    start = {"address": options["address"]}
    if options["address"] is None:
        start = {
            "address": "local",
            "num_cpus": options["workers"] * options["cpus_per_worker"],
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_temp_dir": str(folder),
        }
    try:
        _init(ray, start)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _init(ray: Any, start: dict[str, Any]) -> None:
    try:
        ray.init(**start, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise TrainingError(
            f"Ray cannot be reached or started: {said[0]}",
            "Check train.launcher.address; null starts Ray on this machine.",
        ) from error


def _work(config: dict[str, Any]) -> None:
    """In a worker, in whose environment Ray Train has put RANK and the rest."""
    import torch

    torch.set_num_threads(config["threads"])
    os.environ["OMP_NUM_THREADS"] = str(config["threads"])
    work(Mailbox(Path(config["mailbox"])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
