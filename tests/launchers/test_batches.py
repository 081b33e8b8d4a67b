"""Which rows are in which step; the same however many workers share them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.launchers.batches import Order, Shares, WithFiller

pytestmark = pytest.mark.slow


@settings(deadline=None, max_examples=40)
@given(
    num_rows=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    num_workers=st.integers(1, 5),
    grouped=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_workers_share_the_batches_that_one_would_see(
    num_rows, batch_size, num_workers, grouped, epoch
):
    lengths = [i % 7 + 1 for i in range(num_rows)] if grouped else None
    order = Order(num_rows, 3, lengths, batch_size)

    def batches(worker, count):
        return list(Shares(lambda: order.epoch(epoch), num_rows, batch_size, worker, count))

    alone = batches(0, 1)
    shared = [batches(worker, num_workers) for worker in range(num_workers)]
    assert {len(one) for one in shared} == {len(alone)}
    for i, batch in enumerate(alone):
        together = [row for worker in shared for row in worker[i] if row < num_rows]
        assert sorted(together) == sorted(batch)
        assert all(worker[i] for worker in shared), "no worker may wait for one without a batch"
    assert sorted(row for batch in alone for row in batch) == list(range(num_rows))


def test_each_epoch_has_an_order_of_its_own_and_it_is_always_the_same():
    for lengths in (None, list(range(1, 41))):
        order = Order(40, 3, lengths, 4)
        assert order.epoch(0) != order.epoch(1)
        assert order.epoch(1) == Order(40, 3, lengths, 4).epoch(1)
        assert order.epoch(1) != Order(40, 4, lengths, 4).epoch(1)


def test_the_filler_has_no_label():
    rows = WithFiller([{"input_ids": [1, 2], "labels": [1, 2]}], pad=9)
    assert rows[1] == {"input_ids": [9, 9], "labels": [-100, -100]}
    assert len(rows) == 1
