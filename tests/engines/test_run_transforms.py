import pyarrow as pa

from penstock.engines.base import StreamedRows, run_transforms
from penstock.engines.local import LocalEngine
from penstock.transforms.clean import Normalise
from penstock.transforms.dedupe import ExactDedupe
from penstock.transforms.filter import Filter
from penstock.transforms.near_dedupe import NearDedupe
from penstock.transforms.split import Split

STEPS = [
    Normalise(Normalise.Options()),
    Filter(Filter.Options()),
    ExactDedupe(ExactDedupe.Options()),
    Split(Split.Options()),
]
TABLE = pa.table(
    {
        "_row_id": ["0", "1", "2", "3"],
        "instruction": ["a", "a ", "", "b"],
        "response": ["x", "x", "x", "x"],
    }
)


def rows():
    return StreamedRows(TABLE.schema, lambda: TABLE.to_batches(max_chunksize=3))


def test_counts_name_every_step_in_order_with_what_it_removed(tmp_path):
    prepared = run_transforms(LocalEngine(tmp_path), rows(), STEPS)
    assert list(prepared.counts.items()) == [
        ("normalise", 0),
        ("filter", 1),
        ("dedupe", 1),
        ("split", 0),
    ]
    assert prepared.num_rows == 4
    ledger = pa.concat_tables(prepared.removed_batches()).to_pylist()
    assert [(entry["_row_id"], entry["step"]) for entry in ledger] == [
        ("2", "filter"),
        ("1", "dedupe"),
    ]


def num_read(tmp_path, steps):
    """How many rows are read over all passes."""
    seen = []
    run_transforms(LocalEngine(tmp_path), rows(), steps, seen.append)
    return sum(seen)


def test_neighbouring_row_transforms_share_a_pass(tmp_path):
    assert num_read(tmp_path, STEPS[:2]) == 4
    assert num_read(tmp_path, [STEPS[0], STEPS[0], STEPS[2], STEPS[2]]) == 4 + 4 + 3
    assert num_read(tmp_path, STEPS) == 4 + 3 + 2


def test_a_clustered_transform_reads_the_rows_twice_and_leaves_no_sketches(tmp_path):
    seen = []
    steps = [NearDedupe(NearDedupe.Options())]
    prepared = run_transforms(LocalEngine(tmp_path), rows(), steps, seen.append)
    assert prepared.counts == {"near_dedupe": 1}
    assert sum(seen) == 2 * 4
    assert len(list(tmp_path.iterdir())) == 1 + len(prepared.removed)


def test_no_transforms_leave_the_rows_as_they_are(tmp_path):
    prepared = run_transforms(LocalEngine(tmp_path), rows(), [])
    assert pa.concat_tables(prepared.kept.batches()).equals(TABLE)
    assert prepared.num_rows == 4
    assert prepared.counts == {}


def test_only_the_result_and_the_ledgers_stay_on_disk(tmp_path):
    prepared = run_transforms(LocalEngine(tmp_path), rows(), STEPS)
    assert len(list(tmp_path.iterdir())) == 1 + len(prepared.removed)
