"""Starting, reaching and ending the engines of several processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

import spark_environment
from penstock.engines.base import StreamedRows
from penstock.engines.parcels import Work, packed, unpacked
from penstock.engines.ray import RayEngine
from penstock.engines.spark import SparkEngine
from penstock.errors import EngineError, PenstockError, RecipeError
from penstock.recipe import canonical
from penstock.recipe_file import load_recipe
from penstock.transforms.clean import Normalise

TABLE = pa.table({"_row_id": ["0"], "instruction": ["a "], "response": ["b"]})
ROWS = StreamedRows(TABLE.schema, TABLE.to_batches)
RUN = """
import sys, time
from pathlib import Path
import pyarrow as pa
from penstock.engines.base import StreamedRows
from penstock.registry import resolve
from penstock.transforms.clean import Normalise
table = pa.table({"_row_id": ["0"], "instruction": ["a "], "response": ["b"]})
rows = StreamedRows(table.schema, table.to_batches)
engine = resolve("engines", sys.argv[1])(Path(sys.argv[2]))
assert engine.map_batches(rows, Normalise(Normalise.Options())).kept.num_rows == 1
print("done", flush=True)
if sys.argv[3] == "wait":
    time.sleep(300)
elif sys.argv[3] == "close":
    engine.close()
"""


def start(engine, tmp_path, how):
    """A process that runs a step; everything it writes is to be under ``tmp_path``."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if "RAY_" not in key}
    environment |= {
        "HOME": str(home),
        "TMPDIR": "/tmp",
        "PENSTOCK_SPARK_PYTHON": str(spark_environment.PYTHON),
    }
    return subprocess.Popen(
        [sys.executable, "-c", RUN, engine, str(tmp_path / "scratch"), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )


def wait_until_gone(processes):
    # Ray's agents look after their parent a few times a minute.
    for _ in range(1200):
        alive = [one for one in processes if is_alive(one)]
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {[cmdline(one)[:3] for one in alive]}")


def is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def require(engine):
    if engine == "ray":
        pytest.importorskip("ray")
    elif reason := spark_environment.missing():
        pytest.skip(f"Spark: {reason}")


# One way each: a start takes half a minute, and both ways end in the same place.
@pytest.mark.slow
@pytest.mark.parametrize(("engine", "how"), [("ray", "forget"), ("spark", "close")])
def test_no_process_and_no_file_is_left_behind(engine, tmp_path, how):
    require(engine)
    process = start(engine, tmp_path, how)
    said, complaints = process.communicate(timeout=240)
    assert process.returncode == 0, complaints
    assert said == "done\n"
    assert list((tmp_path / "home").iterdir()) == []
    wait_until_gone([p for p in psutil.process_iter() if str(tmp_path) in " ".join(cmdline(p))])
    assert list(Path("/tmp").glob(f"pen-ray-{process.pid}-*")) == []


def cmdline(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "spark"])
def test_what_was_started_ends_with_a_process_that_is_killed(engine, tmp_path):
    require(engine)
    process = start(engine, tmp_path, "wait")
    assert process.stdout.readline() == "done\n", process.stderr.read()
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.communicate()
    wait_until_gone(children)


@pytest.mark.slow
def test_a_python_without_spark_says_what_it_needs(tmp_path):
    with pytest.raises(EngineError, match=r"Spark in .* failed: .*pyspark") as caught:
        SparkEngine(tmp_path, python=sys.executable, master="local[1]")
    assert "scripts/make-env.sh spark" in caught.value.hint


def test_a_python_that_is_not_there_says_how_to_get_one(tmp_path):
    with pytest.raises(EngineError, match="nowhere/python cannot be started: No such file"):
        SparkEngine(tmp_path, python="nowhere/python")


@pytest.mark.slow
def test_a_spark_that_dies_is_named_and_not_waited_for(tmp_path):
    if reason := spark_environment.missing():
        pytest.skip(f"Spark: {reason}")
    engine = SparkEngine(tmp_path, python=str(spark_environment.PYTHON), master="local[1]")
    worker = engine._session._process
    psutil.Process(worker.pid).kill()
    with pytest.raises(EngineError, match=r"Spark in .* failed"):
        engine.map_batches(ROWS, Normalise(Normalise.Options()))
    engine.close()


@pytest.mark.slow
def test_a_ray_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(EngineError, match=r"Ray at 127\.0\.0\.1:1 cannot be used"):
        RayEngine(tmp_path, address="127.0.0.1:1")


# -- work --------------------------------------------------------------------------


class Refusing:
    name = "refusing"

    def open(self):
        raise RecipeError("refusing: no.", "Ask another.")


def test_work_turns_an_error_into_a_parcel_and_hands_on_one_it_is_given():
    import pickle

    work = Work("map", pickle.dumps(Refusing()), ())
    columns = {"bucket": [0], "place": [0], "kind": ["rows"], "rows": [packed(TABLE)]}
    made = work(pa.table(columns))
    assert made["kind"].to_pylist() == ["error"]
    assert work(made).equals(made)


def test_rows_are_packed_whole():
    assert unpacked(packed(TABLE)).equals(TABLE)
    assert unpacked(packed(TABLE.slice(0, 0))).schema == TABLE.schema


def test_a_transform_that_cannot_be_pickled_is_named(tmp_path):
    class Here:
        name = "here"

    engine = RayEngine.__new__(RayEngine)
    super(RayEngine, engine).__init__(tmp_path)
    with pytest.raises(PenstockError, match="here: it cannot be sent to other processes"):
        engine.map_batches(ROWS, Here())


# -- in the recipe -----------------------------------------------------------------

RECIPE = """
name: shown
sources: {rows: {type: files, paths: [rows.jsonl]}}
prepare: {engine: %s}
evaluate: {tasks: [held_out]}
gate: {max: {held_out: 8.0}}
"""


def recipe(tmp_path, engine):
    (tmp_path / "recipe.yaml").write_text(RECIPE % engine)
    return load_recipe(tmp_path / "recipe.yaml")


def test_the_engine_and_its_options_are_no_part_of_what_a_recipe_means(tmp_path):
    local = recipe(tmp_path, "local")
    spark = recipe(tmp_path, '{type: spark, master: "local[2]"}')
    assert canonical(local.prepare) == canonical(spark.prepare)


def test_an_option_that_an_engine_does_not_have_is_refused_with_the_recipe(tmp_path):
    with pytest.raises(RecipeError, match=r"prepare\.engine\.adress"):
        recipe(tmp_path, "{ray: {adress: auto}}")
