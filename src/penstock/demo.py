"""The demo: the loop in three acts, on the documentation of this Python installation.

It uses what a user uses: a recipe, ``Pipeline.run``, a ``penstock serve`` in a
process of its own, and HTTP. Nothing about the outcome is arranged; another
seed plays another run.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
from rich.panel import Panel
from rich.text import Text

from penstock import printing
from penstock.child_process import die_with_parent
from penstock.errors import RecipeError, ServingError
from penstock.lineage import trace
from penstock.pipeline import Pipeline, Report, open_pipeline

_MARKER = ".penstock-demo"
_QUESTIONS = (
    "What does the function json.loads do?",
    "What does the method pathlib.Path.exists do?",
    "What is the class collections.OrderedDict?",
)
# Often enough to meet the promotion, and no rival of the training for the cores.
_CLIENT_PAUSE_S = 0.3
# So many answers of the new version show that it keeps serving.
_AFTER_PROMOTION = 10


def play(folder: Path, keep_serving: bool, port: int, metrics_port: int, seed: int | None) -> None:
    """Play all three acts.

    Args:
        folder: Where to play; replaced if an earlier demo made it.
        keep_serving: Leave the server up at the end, until Ctrl-C.
        port: Where to serve; 0 picks a free one.
        metrics_port: Where to expose metrics; likewise.
        seed: Of training and evaluation; None takes the recipe's.

    Raises:
        RecipeError: The folder holds something else.
        PenstockError: Whatever a stage or the server refuses.
    """
    began = time.monotonic()
    port, metrics_port = _free(port, "--port"), _free(metrics_port, "--metrics-port")
    stage = _Stage(folder, port, metrics_port, seed)
    with _peak_memory() as peak:
        stage.build()
        with _server(stage) as server:
            reports = [_act_1(stage, server), _act_2(stage, server), _act_3(stage, server)]
            _summary(reports, time.monotonic() - began, peak())
            _how_to_go_on(stage, keep_serving)
            if keep_serving:
                server.process.wait()


def _free(port: int, flag: str) -> int:
    """Find out now, not after the first training, that the server could not start there.

    Returns:
        The port; a free one for 0.
    """
    with socket.socket() as one:
        # As the server will do it: a port that was just given back is free.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
            return int(one.getsockname()[1])
        except OSError as error:
            raise ServingError(
                f"Port {port} on 127.0.0.1 cannot be used: {error.strerror}.",
                f"Stop what listens there, or choose another with {flag}.",
            ) from None


@dataclass
class _Stage:
    """The project folder the demo plays in."""

    folder: Path
    port: int
    metrics_port: int
    seed: int | None

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def build(self) -> None:
        """Lay out a fresh project: recipe, source plug-in, evaluation tasks."""
        if self.folder.exists() and any(self.folder.iterdir()):
            if not (self.folder / _MARKER).exists():
                raise RecipeError(
                    f"{self.folder} is not empty, and not an earlier demo.",
                    "Name another folder: penstock demo --folder DIR",
                )
            shutil.rmtree(self.folder)
        example = resources.files("penstock") / "examples" / "python_docs"
        with resources.as_file(example) as source:
            shutil.copytree(source, self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        (self.folder / _MARKER).touch()
        with printing.Bars().track("build the evaluation from held-out modules"):
            self._build_tasks()

    def _build_tasks(self) -> None:
        libraries = " ".join(self._libraries())
        command = [sys.executable, "tasks.py", "tasks", *libraries.split()]
        done = subprocess.run(  # noqa: S603  # our own script, no shell
            command, cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RecipeError(f"tasks.py failed: {done.stderr.strip().splitlines()[-1]}")

    def _libraries(self) -> list[str]:
        """Every library any act trains on: the evaluation must not overlap with them."""
        import yaml

        text = _uncommented(_uncommented(self.recipe.read_text(), 2), 3)
        sources = yaml.safe_load(text)["sources"].values()
        return sorted({name for one in sources for name in one.get("libraries", [])} - {"stdlib"})

    def arrive(self, act: int) -> str:
        """Add the sources of an act to the recipe; returns the lines that were added."""
        before = self.recipe.read_text()
        after = _uncommented(before, act)
        self.recipe.write_text(after)
        return "\n".join(line for line in after.splitlines() if line not in before.splitlines())

    def open(self) -> Pipeline:
        overrides: dict[str, Any] = {
            "serve.port": self.port,
            "serve.metrics_port": self.metrics_port,
        }
        if self.seed is not None:
            overrides["seed"] = self.seed
        return open_pipeline(self.recipe, overrides, printing.Bars())


def _uncommented(recipe: str, act: int) -> str:
    """The recipe with the lines marked ``#2`` or ``#3`` in force."""
    return re.sub(rf"^(\s*)#{act} ", r"\1", recipe, flags=re.MULTILINE)


def _act_1(stage: _Stage, server: _Server) -> Report:
    _title(1, "First model", "The standard library's docstrings become a served model.")
    pipeline = stage.open()
    report = pipeline.run()
    printing.report_table(report)
    _expect(report, "SUCCEEDED")
    server.start()
    answers = [_ask(server.url, pipeline.recipe.model_name, question) for question in _QUESTIONS]
    for question, answer in zip(_QUESTIONS, answers, strict=True):
        printing.OUT.print(Text.assemble(("  ask  ", "bold"), question))
        printing.OUT.print(Text.assemble(("  get  ", "bold"), (answer.text, "italic")))
    printing.OUT.print(f"\n$ penstock lineage {answers[0].id}")
    printing.lineage(trace(answers[0].id, pipeline.ledger, pipeline.store))
    return report


def _act_2(stage: _Stage, server: _Server) -> Report:
    _title(2, "More data arrives", "Installed packages join; version 1 keeps serving meanwhile.")
    printing.OUT.print(Text(stage.arrive(2), style="green"))
    pipeline = stage.open()
    printing.plan_table(pipeline.plan())
    with _client(server.url, pipeline.recipe.model_name) as seen:
        report = pipeline.run()
        if report.status == "SUCCEEDED":
            _wait_for(lambda: seen.versions["2"] >= _AFTER_PROMOTION, 30.0)
    printing.report_table(report)
    _evidence(pipeline, report)
    versions = ", ".join(
        f"{count:,} from version {v}" for v, count in sorted(seen.versions.items())
    )
    printing.OUT.print(
        f"A client sent {seen.num_sent:,} requests meanwhile: {versions}; "
        f"[bold]{seen.num_failed} failed[/bold]."
    )
    return report


def _act_3(stage: _Stage, server: _Server) -> Report:
    _title(3, "Poison arrives", "An export has scrambled its responses; every row rule passes.")
    printing.OUT.print(Text(stage.arrive(3), style="red"))
    pipeline = stage.open()
    report = pipeline.run()
    printing.report_table(report)
    _evidence(pipeline, report)
    answer = _ask(server.url, pipeline.recipe.model_name, _QUESTIONS[0])
    printing.OUT.print(f"Version [bold]{answer.version}[/bold] keeps serving.")
    return report


def _title(number: int, name: str, text: str) -> None:
    printing.OUT.print()
    printing.OUT.print(Panel(text, title=f"Act {number}: {name}", title_align="left"))


def _expect(report: Report, status: str) -> None:
    if report.status != status:
        raise ServingError(
            f"The first model did not pass: {report.message}", "Try another seed: --seed N"
        )


def _evidence(pipeline: Pipeline, report: Report) -> None:
    from penstock.gates import Decision

    if "gate" not in report.artifacts:
        return
    folder = pipeline.store.folder(report.artifacts["gate"])
    printing.decision(Decision.from_json((folder / "decision.json").read_text()))
    printing.OUT.print(f"The whole decision, with plots: {folder / 'decision.html'}")


def _summary(reports: list[Report], total_s: float, peak_bytes: int) -> None:
    rows = []
    for act, report in enumerate(reports, start=1):
        for record in report.stages:
            artifact = report.artifacts.get(record.stage)
            counts = printing.row_counts(artifact) if record.outcome != "skipped" else ("", "", "")
            shown = printing.result(artifact) if artifact and record.outcome != "skipped" else ""
            rows.append(
                (act, record.stage, record.outcome, f"{record.duration_s:.1f} s", *counts, shown)
            )
    columns = ("act", "stage", "outcome", "time", "in", "removed", "out", "result")
    printing.OUT.print()
    printing.table(columns, rows, "The whole demo")
    printing.OUT.print(
        f"Total [bold]{total_s:.0f} s[/bold], peak memory of all processes "
        f"[bold]{peak_bytes / 1e9:.1f} GB[/bold]."
    )


def _how_to_go_on(stage: _Stage, keep_serving: bool) -> None:
    out = printing.OUT
    out.print("\nGo on:")
    out.print(f"  cd {stage.folder}")
    out.print("  penstock plan              # what would run now, and why")
    out.print("  penstock runs              # the three runs above")
    out.print("  penstock model history     # every move of the production pointer")
    out.print("  penstock quarantine list   # what validation held back, and why")
    out.print("  penstock model rollback    # back to version 1, in one step")
    out.print("  penstock init DIR          # a recipe for your own JSONL, CSV or Parquet files")
    if keep_serving:
        out.print(f"\nServing on http://127.0.0.1:{stage.port} until Ctrl-C.")


# -- the server and its clients ------------------------------------------------


class _Server:
    """``penstock serve`` in a process of its own, ended with this one."""

    def __init__(self, stage: _Stage) -> None:
        self.url = f"http://127.0.0.1:{stage.port}"
        self._stage = stage
        self._log = stage.folder / "serve.log"
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            ServingError: It ended, or did not answer within two minutes.
        """
        command = [sys.executable, "-m", "penstock.cli", "serve", "--recipe", "recipe.yaml"]
        command += ["--port", str(self._stage.port)]
        command += ["--set", f"serve.metrics_port={self._stage.metrics_port}"]
        with self._log.open("wb") as log, printing.Bars().track("start the server"):
            self.process = subprocess.Popen(  # noqa: S603  # our own program, no shell
                command,
                cwd=self._stage.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
            ready = _wait_for(lambda: self.process.poll() is not None or self._is_ready(), 120.0)
        if not ready or self.process.poll() is not None:
            raise ServingError(
                f"The server did not start: {self._log.read_text()[-500:].strip()}",
                "Is the port taken? Choose others with --port and --metrics-port.",
            )

    def stop(self) -> None:
        """Let it finish its answers, then end it."""
        if not hasattr(self, "process") or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def _server(stage: _Stage) -> Iterator[_Server]:
    server = _Server(stage)
    try:
        yield server
    finally:
        server.stop()


@dataclass(frozen=True)
class _Answer:
    id: str
    text: str
    version: str


def _ask(url: str, model: str, question: str) -> _Answer:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 40,
        "temperature": 0,
    }
    request = urllib.request.Request(  # noqa: S310  # always our own http:// address
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        content = json.load(answer)
        version = answer.headers["x-penstock-model-version"]
    return _Answer(content["id"], content["choices"][0]["message"]["content"].strip(), version)


@dataclass
class _Seen:
    """What a client has seen so far."""

    num_sent: int = 0
    num_failed: int = 0
    versions: Counter[str] = field(default_factory=Counter)


@contextmanager
def _client(url: str, model: str) -> Iterator[_Seen]:
    """A client that keeps asking, one question after the other, while the block runs."""
    seen, stop = _Seen(), threading.Event()

    def ask() -> None:
        while not stop.wait(_CLIENT_PAUSE_S):
            question = _QUESTIONS[seen.num_sent % len(_QUESTIONS)]
            seen.num_sent += 1
            try:
                seen.versions[_ask(url, model, question).version] += 1
            except (urllib.error.URLError, OSError, ValueError, KeyError):
                seen.num_failed += 1

    thread = threading.Thread(target=ask, daemon=True, name="client")
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _wait_for(condition: Any, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.2)
    return False


@contextmanager
def _peak_memory() -> Iterator[Any]:
    """Follow the resident memory of this process and all below it; yields a reader, bytes."""
    stop, peak = threading.Event(), [0]

    def follow() -> None:
        process = psutil.Process()
        while not stop.wait(0.5):
            total = 0
            for one in (process, *process.children(recursive=True)):
                try:
                    total += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=follow, daemon=True, name="memory")
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        thread.join()
