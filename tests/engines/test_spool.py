import errno

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engines import spool as spool_module
from penstock.engines.spool import Spool, recut
from penstock.errors import StoreError

TABLE = pa.table({"n": list(range(100))})


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=8), st.integers(8, 400))
def test_rows_are_recut_without_loss_to_about_the_size_asked_for(sizes, batch_bytes):
    tables, start = [], 0
    for size in sizes:
        tables.append(pa.table({"n": pa.array(range(start, start + size), pa.int64())}))
        start += size
    out = list(recut(tables, batch_bytes))
    assert [n for table in out for n in table["n"].to_pylist()] == list(range(start))
    row_bytes = 8  # a row is never cut
    assert all(table.nbytes < 2 * batch_bytes + row_bytes for table in out)
    assert all(table.nbytes >= batch_bytes for table in out[:-1])


def test_a_spool_counts_and_returns_what_was_written_in_order(tmp_path):
    with Spool(tmp_path / "s", TABLE.schema) as spool:
        spool.write(TABLE.slice(0, 60))
        spool.write(TABLE.slice(60), batch_bytes=80)
    assert spool.num_rows == 100
    assert spool.num_bytes == TABLE.nbytes
    assert pa.concat_tables(spool.batches()).equals(TABLE)
    assert max(table.num_rows for table in list(spool.batches())[1:]) <= 10


def test_a_discarded_spool_leaves_nothing_behind(tmp_path):
    with Spool(tmp_path / "s", TABLE.schema) as spool:
        spool.write(TABLE)
    spool.discard()
    spool.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_of_the_store(tmp_path, monkeypatch):
    class Full:
        def write_table(self, table):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(spool_module.pa.ipc, "new_stream", lambda *args, **kwargs: Full())
    with Spool(tmp_path / "s", TABLE.schema) as spool, pytest.raises(StoreError, match="full"):
        spool.write(TABLE)
