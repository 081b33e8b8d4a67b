import threading
import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from ingest_project import IngestProject
from penstock.errors import SourceError, SourceUnavailable
from penstock.sources import sql
from penstock.sources.base import OFFSET, ORIGIN, ROW_KEY, DeadLetter
from penstock.sources.sql import SqlSource

NOON = datetime(2026, 3, 1, 12, 0, 0)


class Database:
    """An empty database with one table, ``questions``."""

    def __init__(self, url, password=None):
        self.url = url
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)
        self.execute(
            "CREATE TABLE questions (id BIGINT PRIMARY KEY, text VARCHAR, changed TIMESTAMP)"
        )

    def execute(self, statement, *rows):
        with self._engine.begin() as connection:
            connection.execute(sa.text(statement), list(rows) or None)

    def add(self, *ids, changed=NOON, text=None):
        rows = [{"id": i, "text": text or f"q{i}", "changed": changed} for i in ids]
        statement = sa.text("INSERT INTO questions VALUES (:id, :text, :changed)")
        with self._engine.begin() as connection:
            connection.execute(
                statement.bindparams(sa.bindparam("changed", None, sa.DateTime())), rows
            )

    def begin(self):
        return self._engine.connect()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request, tmp_path):
    if request.param == "sqlite":
        return Database(f"sqlite:///{tmp_path / 'shop.db'}")
    return Database(request.getfixturevalue("postgres_server").new_schema())


@pytest.fixture
def postgres(request, postgres_server):
    return Database(postgres_server.new_schema())


def source(database, folder, **options):
    options = {"table": "questions", "settle_s": 0, **options}
    if "query" in options:
        del options["table"]
    return SqlSource(SqlSource.Options(url=database.url, **options), folder)


def project(database, folder, **options):
    options = {"table": "questions", "settle_s": 0, **options}
    return IngestProject(folder / "project", type="sql", url=database.url, **options)


def rows_of(one, unit=None):
    unit = unit or one.snapshot()[0]
    return [
        row
        for piece in one.read(unit)
        if not isinstance(piece, DeadLetter)
        for row in piece.to_pylist()
    ]


@pytest.mark.slow
def test_a_run_brings_what_lies_beyond_the_last_and_nothing_twice(database, tmp_path):
    database.add(1, 2, 3)
    run = project(database, tmp_path, cursor="id")
    assert run.ingest()[1]["rows"] == {"out": 3, "total": 3}
    assert run.ingest()[0] == "hit"
    database.add(4, 5)
    assert run.ingest()[1]["rows"] == {"out": 2, "total": 5}
    assert run.column("id") == [1, 2, 3, 4, 5]
    assert len(set(run.column("_row_id"))) == 5
    assert run.column(ORIGIN)[0] == "questions:id=1"


def test_an_empty_table_is_no_news_and_its_first_rows_come_when_they_are_there(database, tmp_path):
    run = project(database, tmp_path, cursor="id")
    assert run.ingest()[1]["rows"] == {"out": 0, "total": 0}
    database.add(0, 1)
    run.ingest()
    assert run.column("id") == [0, 1]


@pytest.mark.slow
def test_a_purged_table_changes_nothing_that_was_ingested(database, tmp_path):
    database.add(1, 2)
    run = project(database, tmp_path, cursor="id")
    run.ingest()
    database.execute("DELETE FROM questions")
    assert run.ingest()[0] == "hit"
    database.add(3)
    run.ingest()
    assert run.column("id") == [1, 2, 3]


@pytest.mark.slow
def test_rows_with_one_timestamp_are_all_kept_apart_and_come_together(database, tmp_path):
    database.add(*range(2_500))
    database.add(9_000, changed=NOON + timedelta(microseconds=1))
    run = project(database, tmp_path, cursor="changed")
    run.ingest()
    assert sorted(run.column("id")) == [*range(2_500), 9_000]
    assert len(set(run.column("_row_id"))) == 2_501


@pytest.mark.parametrize("statement", ["table", "query"])
def test_equal_rows_without_a_key_are_counted_and_get_ids_of_their_own(
    database, tmp_path, statement
):
    database.execute("CREATE TABLE log (word VARCHAR, at TIMESTAMP)")
    database.execute(f"INSERT INTO log VALUES ('a', '{NOON}'), ('b', '{NOON}'), ('a', '{NOON}')")
    what = (
        {"table": "log"} if statement == "table" else {"table": None, "query": "SELECT * FROM log;"}
    )
    first = rows_of(source(database, tmp_path, **what, cursor="at"))
    assert sorted(row["word"] for row in first) == ["a", "a", "b"]
    assert len({row[ROW_KEY] for row in first}) == 3
    assert {row[OFFSET] for row in first} == {1_772_366_400_000_000}
    assert rows_of(source(database, tmp_path, **what, cursor="at")) == first


@pytest.mark.slow
def test_where_units_end_changes_no_row_id(database, tmp_path):
    database.add(1, 2)
    one = project(database, tmp_path / "one", cursor="changed")
    one.ingest()
    database.add(3, 4, changed=NOON + timedelta(seconds=1))
    one.ingest()
    two = project(database, tmp_path / "two", cursor="changed")
    two.ingest()
    assert one.column("_row_id") == two.column("_row_id")


def test_a_key_that_two_rows_share_is_refused_with_its_values(database, tmp_path):
    database.add(1, 2, text="same")
    with pytest.raises(SourceError, match=r"two rows have the same text: text=same") as error:
        rows_of(source(database, tmp_path, cursor="changed", key="text"))
    assert "key" in error.value.hint


@pytest.mark.slow
def test_a_changed_row_comes_again_as_another_row(database, tmp_path):
    database.add(1, 2)
    run = project(database, tmp_path, cursor="changed")
    run.ingest()
    database.execute(
        f"UPDATE questions SET text = 'new', changed = '{NOON + timedelta(days=1)}' WHERE id = 1"
    )
    run.ingest()
    assert run.column("text") == ["q1", "q2", "new"]
    assert len(set(run.column("_row_id"))) == 3


@pytest.mark.slow
def test_a_time_counts_only_once_it_is_settled(database, tmp_path):
    now = datetime.now(UTC).replace(tzinfo=None)
    database.add(1, changed=now - timedelta(hours=2))
    database.add(2, changed=now - timedelta(minutes=10))
    database.add(3, changed=now + timedelta(hours=2))
    run = project(database, tmp_path, cursor="changed", settle_s=3_600)
    run.ingest()
    assert run.column("id") == [1]
    # One more with a time that has long gone by, as a slow transaction brings it.
    database.add(4, changed=now - timedelta(minutes=20))
    run.write(type="sql", url=database.url, table="questions", cursor="changed", settle_s=0)
    run.ingest()
    assert run.column("id") == [1, 4, 2]


@pytest.mark.slow
def test_a_date_counts_only_once_its_day_is_over(database, tmp_path):
    database.execute("CREATE TABLE days (id BIGINT PRIMARY KEY, day DATE)")
    today = datetime.now(UTC).date()
    for i, day in enumerate([date(2026, 1, 1), today - timedelta(days=2), today]):
        database.execute(f"INSERT INTO days VALUES ({i}, '{day}')")
    run = project(database, tmp_path, table="days", cursor="day")
    run.ingest()
    assert run.column("id") == [0, 1]
    assert run.column("day")[0] == date(2026, 1, 1)
    database.execute(f"INSERT INTO days VALUES (9, '{today - timedelta(days=1)}')")
    run.ingest()
    assert run.column("id") == [0, 1, 9]


@pytest.mark.slow
def test_a_smaller_number_that_commits_late_is_waited_for(postgres, tmp_path):
    postgres.add(1)
    slow = postgres.begin()
    slow.execute(sa.text("INSERT INTO questions VALUES (2, 'late', now())"))
    postgres.add(3)
    timer = threading.Timer(0.3, lambda: (slow.commit(), slow.close()))
    timer.start()
    run = project(postgres, tmp_path, cursor="id", settle_s=3)
    run.ingest()
    timer.join()
    assert run.column("id") == [1, 2, 3]


@pytest.mark.slow
def test_without_a_cursor_a_table_comes_whole_and_again_when_a_row_changed(database, tmp_path):
    database.add(2, 1)
    run = project(database, tmp_path)
    assert run.ingest()[1]["rows"]["total"] == 2
    assert run.ingest()[0] == "hit"
    assert run.column("id") == [1, 2]
    database.execute("UPDATE questions SET text = 'new' WHERE id = 1")
    assert run.ingest()[1]["rows"] == {"out": 2, "total": 4}


def test_without_cursor_and_key_the_order_of_rows_is_that_of_their_values(database, tmp_path):
    database.execute("CREATE TABLE words (word VARCHAR)")
    database.execute("INSERT INTO words VALUES ('b'), ('a'), ('b')")
    one = source(database, tmp_path, table="words")
    unit = one.snapshot()[0]
    database.execute("DELETE FROM words")
    database.execute("INSERT INTO words VALUES ('b'), ('b'), ('a')")
    assert [row["word"] for row in rows_of(one, unit)] == ["a", "b", "b"]


def test_a_whole_table_that_changes_between_pin_and_read_is_refused(database, tmp_path):
    database.add(1)
    run = source(database, tmp_path)
    (unit,) = run.snapshot()
    database.add(2)
    with pytest.raises(SourceUnavailable, match="questions has changed since it was pinned"):
        rows_of(run, unit)


def test_a_whole_table_without_rows_is_refused(database, tmp_path):
    with pytest.raises(SourceUnavailable, match="nothing in questions: 0 rows"):
        source(database, tmp_path).snapshot()


def test_rows_without_a_cursor_are_refused_with_their_number_or_left_out(database, tmp_path):
    database.add(1)
    database.add(2, 3, changed=None)
    with pytest.raises(SourceError, match="'changed' is null in 2 rows"):
        source(database, tmp_path, cursor="changed").snapshot()
    left = source(database, tmp_path, cursor="changed", null_cursor="leave_out")
    assert [row["id"] for row in rows_of(left)] == [1]


def test_a_column_of_nothing_but_nulls_is_refused_as_a_cursor(database, tmp_path):
    database.add(1, changed=None)
    with pytest.raises(SourceError, match="'changed' is null in 1 rows"):
        source(database, tmp_path, cursor="changed").snapshot()


@pytest.mark.parametrize(
    ("column", "type_", "value", "message"),
    [
        ("word", "VARCHAR", "'abc'", "holds (str )?'abc'"),
        ("score", "FLOAT", "1.5", "holds float '1.5'"),
    ],
)
def test_a_cursor_that_does_not_count_is_refused_with_a_value_of_it(
    database, tmp_path, column, type_, value, message
):
    database.execute(f"CREATE TABLE odd ({column} {type_})")
    database.execute(f"INSERT INTO odd VALUES ({value})")
    with pytest.raises(SourceError, match=message) as error:
        source(database, tmp_path, table="odd", cursor=column).snapshot()
    assert "column" in error.value.hint


@pytest.mark.parametrize("value", ["-1", "-9223372036854775807"])
def test_a_negative_cursor_is_refused_before_anything_is_read(database, tmp_path, value):
    database.execute(f"INSERT INTO questions (id) VALUES (5), ({value})")
    with pytest.raises(SourceError, match=rf"'id' holds '{value}'. Valid: from 0"):
        source(database, tmp_path, cursor="id").snapshot()


def test_the_largest_number_of_all_is_ingested_once(database, tmp_path):
    database.add(1, 2**63 - 1)
    run = project(database, tmp_path, cursor="id")
    run.ingest()
    assert run.column("id") == [1, 2**63 - 1]
    assert run.ingest()[0] == "hit"


@pytest.mark.parametrize("stored", ["'2026-03-01T12:00:00'", "1772366400", "'yesterday'"])
def test_times_in_sqlite_that_do_not_sort_as_text_are_refused(tmp_path, stored):
    database = Database(f"sqlite:///{tmp_path / 'shop.db'}")
    database.add(1)
    database.execute(f"INSERT INTO questions VALUES (2, 'odd', {stored})")
    with pytest.raises(SourceError, match=stored.strip("'")):
        source(database, tmp_path, cursor="changed").snapshot()


@pytest.mark.slow
def test_text_among_the_numbers_of_a_sqlite_column_costs_its_row_and_no_other(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'shop.db'}")
    database.execute("CREATE TABLE loose (id INTEGER PRIMARY KEY, n INTEGER)")
    database.execute(
        "INSERT INTO loose VALUES (1, 10), (2, 'ten'), (3, CAST(x'ff' AS TEXT)), (4, 40)"
    )
    run = project(database, tmp_path, table="loose", cursor="id")
    _, summary = run.ingest()
    assert run.column("n") == [10, 40]
    assert summary["dead_letters"] == 2
    assert [letter[ORIGIN] for letter in run.dead_letters()] == ["loose:id=2", "loose:id=3"]
    database.execute("INSERT INTO loose VALUES (5, 'again'), (6, 60)")
    assert run.ingest()[1]["dead_letters"] == 1
    assert run.column("n") == [10, 40, 60]


@pytest.mark.slow
def test_values_of_many_types_arrive_as_what_they_are(postgres, tmp_path):
    postgres.execute(
        "CREATE TABLE kinds (id NUMERIC(20,0) PRIMARY KEY, b BOOLEAN, f FLOAT, d NUMERIC(10,2), "
        "at TIMESTAMPTZ, day DATE, j JSONB, u UUID, words TEXT[], raw BYTEA, t TIME, n TEXT)"
    )
    postgres.execute(
        "INSERT INTO kinds VALUES (9007199254740993, true, 'NaN', 1.25, "
        "'2026-03-01 13:00:00+01', '2026-03-01', '{\"a\": [1]}', "
        "'00000000-0000-0000-0000-000000000001', '{x,y}', '\\x00ff', '10:30', NULL)"
    )
    run = project(postgres, tmp_path, table="kinds", cursor="id")
    run.ingest()
    (row,) = run.rows()
    assert row["id"] == 9007199254740993
    assert (row["b"], row["d"], row["day"]) == (True, 1.25, date(2026, 3, 1))
    assert row["f"] != row["f"]
    assert row["at"] == NOON.replace(tzinfo=UTC)
    assert (row["j"], row["words"], row["raw"]) == ({"a": [1]}, ["x", "y"], b"\x00\xff")
    assert (row["u"], row["t"]) == ("00000000-0000-0000-0000-000000000001", "10:30:00")
    assert row["n"] is None


def test_a_query_may_join_hold_colons_and_rename(postgres, tmp_path):
    postgres.add(1, 2)
    query = "SELECT id AS n, text::text || ':x' AS instruction FROM questions ORDER BY id DESC"
    one = source(postgres, tmp_path, table=None, query=query, cursor="n", key="n")
    assert [row["instruction"] for row in rows_of(one)] == ["q1:x", "q2:x"]


@pytest.mark.slow
def test_rows_are_streamed_and_come_in_bounded_batches(postgres, tmp_path):
    postgres.execute(
        "INSERT INTO questions SELECT i, repeat('x', 100), now() FROM generate_series(1, 25000) i"
    )
    one = source(postgres, tmp_path, cursor="id")
    sizes = [piece.num_rows for piece in one.read(one.snapshot()[0])]
    assert sizes == [10_000, 10_000, 5_000]


@pytest.mark.slow
def test_reading_sees_one_state_of_the_database(postgres, tmp_path):
    postgres.execute("INSERT INTO questions SELECT i, 'x', now() FROM generate_series(1, 12000) i")
    one = source(postgres, tmp_path)
    (unit,) = one.snapshot()
    pieces = one.read(unit)
    first = next(pieces)
    postgres.execute("UPDATE questions SET text = 'y'")
    rest = pa.Table.from_batches([first, *pieces])
    assert set(rest["text"].to_pylist()) == {"x"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "calls"),
    [
        ("penstock.stages.ingest:_Spool.add", 1),
        ("penstock.stages.ingest:_Spool.add", 3),
        ("penstock.tables:Table.append_once", 1),
        ("penstock.tables:Table.append_once", 2),
        ("penstock.tables:Table._handle_with", 2),
        ("penstock.ledger:Ledger.record", 1),
    ],
)
def test_killed_anywhere_and_run_again_nothing_is_lost_or_doubled(
    postgres, tmp_path, function, calls
):
    """The table grows while the run is dead, and ties stand where units end."""
    fill = (
        "INSERT INTO questions SELECT i, 'q' || i, "
        "timestamp '2026-03-01' + make_interval(secs => i / 1000) FROM generate_series({}, {}) i"
    )
    postgres.execute(fill.format(1, 25_500))
    run = project(postgres, tmp_path, cursor="changed")
    assert run.killed_ingest(function, calls)
    postgres.execute(fill.format(26_000, 30_000))
    _, summary = run.ingest()
    ids = run.column("id")
    assert sorted(ids) == [*range(1, 25_501), *range(26_000, 30_001)]
    assert len(set(run.column("_row_id"))) == len(ids) == summary["rows"]["total"]


@pytest.mark.slow
def test_killed_at_any_moment_while_rows_keep_coming_nothing_is_lost_or_doubled(postgres, tmp_path):
    run = project(postgres, tmp_path, cursor="changed", settle_s=0.5)
    done = threading.Event()
    count = 0

    def write():
        nonlocal count
        while not done.is_set():
            values = ",".join(f"({count + i}, 'q', clock_timestamp())" for i in range(50))
            postgres.execute(f"INSERT INTO questions VALUES {values}")
            count += 50
            time.sleep(0.005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for calls in (1, 2):
            run.killed_ingest("penstock.stages.ingest:_Spool.add", calls)
            run.killed_ingest("penstock.tables:Table.append_once", calls)
    finally:
        done.set()
        writer.join()
    time.sleep(0.6)
    run.ingest()
    assert sorted(run.column("id")) == list(range(count))
    assert len(set(run.column("_row_id"))) == count


def test_a_table_that_is_not_there_is_named_with_the_nearest_that_is(database, tmp_path):
    with pytest.raises(SourceError, match=r"no table 'question'. Did you mean 'questions'\?"):
        source(database, tmp_path, table="question").snapshot()


def test_a_column_that_is_not_there_is_named_with_the_nearest_that_is(database, tmp_path):
    for options in ({"cursor": "change"}, {"cursor": "id", "key": ["change"]}):
        with pytest.raises(SourceError, match=r"no column 'change'. Did you mean 'changed'\?"):
            source(database, tmp_path, **options).snapshot()


def test_a_table_that_goes_away_between_pin_and_read_is_an_error_without_a_traceback(
    database, tmp_path
):
    database.add(1)
    one = source(database, tmp_path, cursor="id")
    (unit,) = one.snapshot()
    database.execute("DROP TABLE questions")
    with pytest.raises(SourceError, match="no table 'questions'"):
        rows_of(one, unit)


def test_a_query_that_is_wrong_is_told_in_the_databases_own_words(database, tmp_path):
    with pytest.raises(SourceError, match="nowhere") as error:
        source(database, tmp_path, query="SELECT * FROM nowhere", cursor="id").snapshot()
    assert "query" in error.value.hint


def test_a_reserved_column_name_is_refused(database, tmp_path):
    database.execute('CREATE TABLE ours (id BIGINT PRIMARY KEY, "_row_id" BIGINT)')
    database.execute("INSERT INTO ours VALUES (1, 1)")
    with pytest.raises(SourceError, match="'_row_id' is reserved"):
        rows_of(source(database, tmp_path, table="ours", cursor="id"))


@pytest.fixture
def hurry(monkeypatch):
    monkeypatch.setattr(sql, "_FIRST_PAUSE_S", 0.001)


def test_a_server_that_is_down_is_an_error_that_says_where(tmp_path, hurry):
    options = SqlSource.Options(
        url="postgresql://reader:geheim@127.0.0.1:1/shop", table="questions", cursor="id"
    )
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:1/shop said") as error:
        SqlSource(options, tmp_path).snapshot()
    assert "server runs" in error.value.hint
    assert "geheim" not in error.value.message + error.value.hint


def test_a_connection_is_tried_for_more_than_once(postgres, tmp_path, hurry, monkeypatch):
    postgres.add(1)
    real, refusals = sa.Engine.connect, [0, 0, 0]

    def busy(engine):
        if refusals:
            refusals.pop()
            engine = sa.create_engine("postgresql://127.0.0.1:1/shop", poolclass=sa.NullPool)
        return real(engine)

    monkeypatch.setattr(sa.Engine, "connect", busy)
    assert rows_of(source(postgres, tmp_path, cursor="id"))[0]["id"] == 1
    assert refusals == []


@pytest.mark.slow
def test_a_connection_that_breaks_while_rows_are_read_is_an_outage(postgres, tmp_path):
    postgres.add(*range(25_000))
    one = source(postgres, tmp_path, cursor="id")
    pieces = one.read(one.snapshot()[0])
    next(pieces)
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    with pytest.raises(SourceUnavailable, match=r"questions: .* said"):
        list(pieces)


@pytest.mark.parametrize(
    ("database", "change"),
    [
        ("nowhere", {}),
        ("postgres", {"table": "nowhere"}),
        ("postgres", {"query": "SELECT 1 / 0 AS id"}),
    ],
)
def test_what_a_server_refuses_is_no_outage(postgres, tmp_path, database, change):
    postgres.url = postgres.url.replace("/postgres?", f"/{database}?", 1)
    with pytest.raises(SourceError) as error:
        source(postgres, tmp_path, cursor="id", **change).snapshot()
    assert not error.value.transient


def test_a_sqlite_file_that_somebody_has_locked_is_an_outage(tmp_path, hurry):
    locked = Database(f"sqlite:///{tmp_path / 'shop.db'}?timeout=0")
    with locked.begin() as connection:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        with pytest.raises(SourceUnavailable, match="locked"):
            source(locked, tmp_path, cursor="id").snapshot()


@pytest.fixture
def guarded(postgres_server):
    """A database whose user ``reader`` needs a password, over the same socket."""
    url = postgres_server.new_database()
    Database(url).execute("CREATE ROLE reader LOGIN PASSWORD 'right' IN ROLE pg_read_all_data")
    rules = postgres_server.folder / "data" / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("local all reader scram-sha-256\n" + before)
    postgres_server.execute("SELECT pg_reload_conf()")
    yield url.replace("postgres@", "reader@")
    rules.write_text(before)
    postgres_server.execute("SELECT pg_reload_conf()")
    postgres_server.execute("DROP ROLE reader")


def test_the_password_comes_from_the_environment_and_is_written_nowhere(
    guarded, tmp_path, monkeypatch
):
    monkeypatch.setenv("SHOP_PASSWORD", "wrong-s3cret")
    run = IngestProject(
        tmp_path, type="sql", url=guarded, password="${SHOP_PASSWORD}", table="questions",
        cursor="id", settle_s=0,
    )  # fmt: skip
    with pytest.raises(SourceError, match="password authentication failed") as error:
        run.ingest()
    assert not error.value.transient
    assert "wrong-s3cret" not in str(error.value) + error.value.hint
    assert "wrong-s3cret" not in run.text()
    monkeypatch.setenv("SHOP_PASSWORD", "right")
    assert run.ingest()[1]["rows"]["total"] == 0


def test_a_sqlite_file_that_is_not_there_is_not_made(tmp_path):
    options = SqlSource.Options(url="sqlite:///shop.db", table="questions")
    with pytest.raises(SourceError, match=r"no SQLite file 'shop\.db'"):
        SqlSource(options, tmp_path).snapshot()
    assert not (tmp_path / "shop.db").exists()


def test_a_file_that_is_no_sqlite_database_is_an_error(tmp_path):
    (tmp_path / "shop.db").write_bytes(b"not a database at all" * 100)
    options = SqlSource.Options(url="sqlite:///shop.db", table="questions")
    with pytest.raises(SourceError, match="not a database"):
        SqlSource(options, tmp_path).snapshot()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not a database's address"),
        ("nosuch://host/db", "no database is known as 'nosuch'"),
        ("mysql+pymysql://host/db", "driver 'pymysql'"),
    ],
)
def test_an_address_that_is_none_is_refused_in_words(tmp_path, url, message):
    options = SqlSource.Options(url=url, table="questions")
    with pytest.raises(SourceError, match=message):
        SqlSource(options, tmp_path).snapshot()


def test_either_a_table_or_a_query_is_needed():
    for options in ({}, {"table": "a", "query": "SELECT 1"}):
        with pytest.raises(ValidationError, match="either `table` or `query`"):
            SqlSource.Options(url="sqlite:///a.db", **options)


def test_a_decimal_cursor_beyond_what_a_float_holds_stays_exact(postgres, tmp_path):
    postgres.execute("CREATE TABLE big (n NUMERIC)")
    postgres.execute("INSERT INTO big VALUES (9007199254740993), (9007199254740992)")
    rows = rows_of(source(postgres, tmp_path, table="big", cursor="n"))
    assert [row[OFFSET] for row in rows] == [9007199254740992, 9007199254740993]
    postgres.execute("INSERT INTO big VALUES (9007199254740993.5)")
    one = source(postgres, tmp_path, table="big", cursor="n")
    with pytest.raises(SourceError, match=f"{Decimal('9007199254740993.5')}"):
        rows_of(one)
