from datetime import UTC, datetime, timedelta

import pytest

from penstock.day_tables import DAY, DayTable, day_of, id_ms
from penstock.errors import StoreError
from penstock.monitoring.row_writer import RowWriter, pseudonym
from penstock.traffic import FEEDBACK_SCHEMA
from traffic_rows import opinion, response_id


class Told(DayTable):
    """A table that remembers what it was told to do."""

    def __init__(self, folder):
        super().__init__(folder)
        self.told = []

    def compact(self, day):
        self.told.append(("compact", day))

    def expire(self, before):
        self.told.append(("expire", before))


@pytest.fixture
def table(tmp_path):
    return Told(tmp_path / "feedback")


def write(writer, *names):
    writer.append(writer.begin(), [opinion(name) for name in names])


def test_rows_of_several_days_are_one_commit(table):
    young, old = response_id(), response_id(days_ago=1)
    write(RowWriter(table, FEEDBACK_SCHEMA, None), young, old, young)
    rows = [row for batch in table.scan() for row in batch.to_pylist()]
    assert len({row["_version"] for row in rows}) == 1
    assert table.find([old], day_of(id_ms(old)))[DAY].to_pylist() == [day_of(id_ms(old))]


def test_trying_rows_again_commits_them_once(table):
    writer = RowWriter(table, FEEDBACK_SCHEMA, None)
    number = writer.begin()
    for _ in range(2):
        writer.append(number, [opinion(response_id())])
    assert table.count_rows() == 1


def test_two_processes_do_not_take_each_others_rows_for_their_own(table):
    for _ in range(2):
        write(RowWriter(table, FEEDBACK_SCHEMA, None), response_id())
    assert table.count_rows() == 2


def test_days_are_dropped_at_the_start_and_files_made_few_after_many_commits(table):
    today = datetime.now(UTC).date()
    writer = RowWriter(table, FEEDBACK_SCHEMA, retention_days=7, commits_per_tidy=1)
    writer.tidy_if_due()
    assert table.told == [("expire", today - timedelta(days=7))]
    write(writer, response_id())
    writer.tidy_if_due()
    assert table.told[1:] == [("compact", today - timedelta(days=1)), ("compact", today)]
    write(writer, response_id())
    writer.tidy_if_due()
    assert len(table.told) == 3  # not again within a minute


def test_without_retention_no_day_is_dropped(table):
    RowWriter(table, FEEDBACK_SCHEMA, None).tidy_if_due()
    assert table.told == []


def test_what_cannot_be_tidied_does_not_stop_the_writer(table, caplog):
    def away(before):
        raise StoreError("The store is away.")

    table.expire = away
    RowWriter(table, FEEDBACK_SCHEMA, 7).tidy_if_due()
    assert "The store is away." in caplog.text


def test_two_names_that_are_redacted_stay_two():
    ann, bob = (pseudonym(name, "[EMAIL]") for name in ("ann@example.org", "bob@example.org"))
    assert ann.startswith("[EMAIL]-")
    assert ann != bob
    assert pseudonym("ann", "ann") == "ann"
