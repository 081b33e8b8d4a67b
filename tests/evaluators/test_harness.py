"""Which of lm-eval's tasks are looked for, and what is said of one that is not found."""

import pytest

import evaluation_tasks
from penstock.evaluators import harness
from penstock.evaluators.harness import Unusable, task_manager

pytestmark = pytest.mark.slow  # imports lm-eval


@pytest.fixture
def folder(tmp_path):
    return evaluation_tasks.write(tmp_path / "tasks")


def define(folder, name):
    text = (folder / "which.yaml").read_text()
    (folder / f"{name}.yaml").write_text(text.replace("task: which", f"task: {name}"))


def test_a_task_whose_name_begins_like_lm_evals_does_not_stand_for_it(folder):
    define(folder, "hellaswag_mine")
    manager = task_manager(["hellaswag_mine", "hellaswag"], [str(folder)])
    assert {"hellaswag_mine", "hellaswag"} <= set(manager.all_subtasks)


def test_lm_evals_own_tasks_are_not_indexed_where_only_ones_own_are_asked_for(folder):
    (folder / "which.yaml").write_text(
        (folder / "which.yaml").read_text() + "process_docs: !function docs.process\n"
    )
    quoted = (folder / "given.yaml").read_text().replace("task: given", 'task:   "given"')
    (folder / "given.yaml").write_text(quoted)
    manager = task_manager(["which", "given"], [str(folder)])
    assert "hellaswag" not in manager.all_tasks
    assert task_manager([], []).all_tasks == []


def test_a_group_of_ones_own_may_hold_tasks_of_lm_eval(folder):
    (folder / "both.yaml").write_text("group: both\ntask: [which, hellaswag]\n")
    manager = task_manager(["both"], [str(folder)])
    assert {"both", "which", "hellaswag"} <= set(manager.all_tasks)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("task: käse\n".encode("latin-1"), "'utf-8' codec can't decode byte 0xe4"),
        (b"task: [mine\n", "expected ',' or ']'"),
    ],
    ids=["not UTF-8", "not YAML"],
)
def test_a_task_file_that_cannot_be_read_is_named(folder, content, why):
    (folder / "mine.yaml").write_bytes(content)
    assert task_manager(["which"], [str(folder)]).all_subtasks == ["free", "given", "which"]
    with pytest.raises(Unusable, match=r"'mine' is not a task, and .*mine\.yaml cannot") as refused:
        task_manager(["mine"], [str(folder)])
    assert why in refused.value.message


@pytest.fixture
def small_home(tmp_path, monkeypatch):
    """A home without anything kept, and an lm-eval with few tasks of its own."""
    from lm_eval.tasks import manager

    home, own = tmp_path / "home", evaluation_tasks.write(tmp_path / "own")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(manager, "__file__", str(own / "manager.py"))
    plain = manager.TaskIndex.build
    built = []

    def build(paths, **options):
        built.append(paths)
        return plain([own], **options)

    monkeypatch.setattr(manager.TaskIndex, "build", staticmethod(build))
    harness._defaults.cache_clear()
    yield own, built
    harness._defaults.cache_clear()


def indexed():
    """What another process would find."""
    harness._defaults.cache_clear()
    return {name: (one.kind, one.yaml_path) for name, one in harness._defaults().items()}


def test_lm_evals_index_is_built_once_and_again_when_a_file_of_it_changed(small_home):
    own, built = small_home
    first = indexed()
    assert first.keys() >= {"which", "given", "free"}
    assert indexed() == first
    assert len(built) == 1
    define(own, "new")
    assert indexed().keys() - first.keys() == {"new"}
    assert len(built) == 2


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"which": 3}', b'{"which": ["NO", "x", []]}'])
def test_an_index_that_was_damaged_is_built_again(small_home, tmp_path, damage):
    first = indexed()
    (kept,) = (tmp_path / "home").rglob("*.json")
    kept.write_bytes(damage)
    assert indexed() == first
    assert indexed() == first
    assert len(small_home[1]) == 2
