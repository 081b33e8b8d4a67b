"""Windows of a request log, looked at once each, whoever looks and whatever ends them."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from drift_world import HashedWords, World, checking
from penstock.day_tables import day_of
from penstock.errors import EvaluationError, LedgerError, RecipeError
from penstock.ledger import schema
from penstock.ledger.drift_records import DriftRecord, DriftRecords
from penstock.monitoring.drift import DriftWatch
from penstock.monitoring.logged_texts import Window, choose, closed_windows
from penstock.monitoring.text_samples import KeptSamples
from penstock.project import open_project
from penstock.recipe import canonical
from penstock.stages.base import Silent

pytestmark = pytest.mark.slow

EVEN = {"money": 1, "access": 1}
NEWS = {"money": 1, "access": 1, "travel": 6}
# Windows before and after the shift.
EARLY, LATE = 14, 8
BOTH = ["input", "output"]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "project")
    made.serve(1)
    yield made
    made.close()


def founds(status):
    return [(one.record.start_ms, one.record.found) for one in status.windows]


def statistics(status):
    return [one.moment and one.moment.statistic for one in status.windows]


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """Even windows, then some with a new topic; looked at once."""
    made = World(tmp_path_factory.mktemp("shifted") / "project", columns=BOTH)
    made.serve(1)
    made.talk(EARLY, EVEN)
    made.talk(LATE, NEWS)
    made.status = made.check()
    yield made
    made.close()


def test_a_new_topic_raises_one_alarm_soon_after_it_came(shifted):
    places = [i for i, one in enumerate(shifted.status.windows) if one.moment.is_alarm]
    assert len(places) == 1
    assert EARLY <= places[0] < EARLY + 6
    (alarm,) = shifted.alarms()
    assert alarm.alarm.kind == "drift"
    assert alarm.alarm.evidence["window"] == shifted.status.windows[places[0]].name
    assert alarm.alarm.evidence["statistic"] >= alarm.alarm.evidence["threshold"] == 20 / 0.1
    assert next(iter(alarm.alarm.evidence["signals"])).startswith(("input", "output"))


def test_each_window_says_how_it_differs_from_training_and_from_the_first_windows(shifted):
    before, after = shifted.status.windows[10].record, shifted.status.windows[-1].record
    for column in ("input", "output"):
        for against in ("training", "since_promotion"):
            assert not before.found["columns"][column][against]["differs"]
            assert after.found["columns"][column][against]["differs"]
    assert shifted.status.windows[0].record.found["columns"]["input"]["since_promotion"] is None


def test_looking_again_finds_the_same_and_embeds_nothing(shifted):
    embedding = HashedWords()
    again = shifted.check(embedding)
    assert founds(again) == founds(shifted.status)
    assert statistics(again) == statistics(shifted.status)
    assert embedding.count == 0
    assert len(shifted.alarms()) == 1


def test_windows_that_come_later_change_nothing_of_those_before(world):
    world.talk(8, EVEN)
    first = world.check()
    world.talk(4, NEWS)
    later = world.check()
    assert founds(later)[:8] == founds(first)
    assert statistics(later)[:8] == statistics(first)
    assert len(later.windows) == 12


def test_even_traffic_raises_no_alarm(world):
    world.talk(20, EVEN)
    assert world.check().alarms == []
    assert world.alarms() == []


def test_a_promotion_begins_anew(shifted_copy):
    world = shifted_copy
    assert world.check().windows[-1].moment.statistic > 1
    world.serve(2)
    assert world.check().windows == ()
    world.talk(2, NEWS)
    fresh = world.check()
    assert [one.moment.num_windows for one in fresh.windows] == [1, 2]
    assert fresh.version == 2


@pytest.fixture
def shifted_copy(tmp_path):
    made = World(tmp_path / "project")
    made.serve(1)
    made.talk(6, EVEN)
    made.talk(2, NEWS)
    yield made
    made.close()


def records(status):
    return [one.record for one in status.windows]


@pytest.mark.slow
def test_two_processes_that_look_at_once_find_one_result_for_each_window(shifted, tmp_path):
    world = World(tmp_path / "project", columns=BOTH)
    world.serve(1)
    world.talk(EARLY, EVEN)
    world.talk(LATE, NEWS)
    assert checking(world, 2) == [0, 0]
    status = world.watch().status()
    assert founds(status) == founds(shifted.status)
    assert statistics(status) == statistics(shifted.status)
    assert len(world.alarms()) == 1
    world.close()


@pytest.mark.slow
@pytest.mark.parametrize("die_at", [1, 4])
def test_a_check_that_is_killed_is_finished_by_the_next(world, die_at, tmp_path):
    world.talk(6, EVEN)
    assert checking(world, 1, die_at) == [9]
    done = len(world.watch().status().windows)
    assert done < 6
    status = world.check()
    assert len(status.windows) == 6
    again = World(tmp_path / "again")
    again.serve(1)
    again.talk(6, EVEN)
    assert founds(status) == founds(again.check())
    again.close()


def test_an_alarm_that_a_kill_left_unraised_is_raised_by_the_next_check(world, monkeypatch):
    world.talk(EARLY, EVEN)
    world.talk(LATE, NEWS)
    monkeypatch.setattr(DriftWatch, "_raise", lambda self, status: None)
    assert len(world.check().alarms) == 1
    assert world.alarms() == []
    monkeypatch.undo()
    world.check()
    assert len(world.alarms()) == 1


def test_a_sample_that_a_kill_left_half_written_is_made_again(world):
    world.talk(3, EVEN)
    first = world.check()
    with world.ledger.database.write() as connection:
        connection.execute(schema.drift_windows.delete())
    for path in (world.store.root / "drift").rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    assert founds(world.check()) == founds(first)


def test_the_first_result_of_a_window_stays(ledger):
    records = DriftRecords(ledger.database)
    assert records.add(DriftRecord("penny", "s", 5, 6, 1, {"note": "first"}))
    assert not records.add(DriftRecord("penny", "s", 5, 6, 1, {"note": "second"}))
    assert [one.found["note"] for one in records.of("penny", "s")] == ["first"]


def test_windows_without_enough_are_said_to_be_so_and_never_alarm(world):
    world.talk(2, EVEN, rows=0)
    world.talk(1, EVEN, rows=1)
    world.talk(1, EVEN, rows=19)
    world.talk(1, EVEN, rows=20)
    status = world.check()
    notes = [one.record.found["note"] for one in status.windows]
    assert notes == [
        *("0 conversations, 20 needed", "0 conversations, 20 needed"),
        *("1 conversations, 20 needed", "19 conversations, 20 needed", ""),
    ]
    assert [one.moment is None for one in status.windows] == [True] * 4 + [False]


def test_a_log_without_content_is_named_as_the_reason(tmp_path):
    world = World(tmp_path / "project", content=False)
    world.serve(1)
    world.talk(2, EVEN, prompt=None, answer=None)
    status = world.check()
    assert "serve.log.content" in status.notes[0]
    assert all("serve.log.content was off" in one.found["note"] for one in records(status))
    assert status.alarms == []
    world.close()


def test_vectors_that_are_no_numbers_are_an_error_and_leave_no_result(world):
    class Damaged(HashedWords):
        def __call__(self, texts):
            return super().__call__(texts) * np.float32("nan")

    world.talk(3, EVEN)
    with pytest.raises(EvaluationError, match="hold NaN"):
        world.check(Damaged())
    assert world.watch(Damaged()).status().windows == ()
    assert world.alarms() == []
    assert not list((world.store.root / "drift").rglob("*.parquet"))


def test_another_embedding_model_begins_a_stream_of_its_own(world):
    world.talk(3, EVEN)
    world.check()
    other = world.check(HashedWords(dim=24))
    assert [one.moment.num_windows for one in other.windows] == [1, 2, 3]
    assert len(world.check().windows) == 3


def test_a_version_that_nobody_here_trained_is_compared_with_its_first_windows_alone(world):
    world.serve(7, trained_here=False)
    world.talk(3, EVEN)
    status = world.check()
    assert any("None of our runs" in note for note in status.notes)
    assert "training" not in records(status)[-1].found["columns"]["input"]
    assert "since_promotion" in records(status)[-1].found["columns"]["input"]


def test_a_classifier_is_looked_at_by_its_texts_and_labels(tmp_path):
    world = World(tmp_path / "project", trained=("question", "topic"), columns=BOTH)
    world.serve(1)
    world.talk(2, EVEN)
    for one in records(world.check()):
        for column in BOTH:
            assert one.found["columns"][column]["training"]["num_before"] == 60
    assert world.watch().training_column("output") == "topic"
    world.close()


def test_a_model_trained_on_other_columns_is_an_error_that_names_the_column(tmp_path):
    world = World(tmp_path / "project")
    world._trained = ("body", "reply")
    world.serve(1)
    world.talk(1, EVEN)
    with pytest.raises(LedgerError, match="have no column 'instruction'"):
        world.check()
    world.close()


def test_a_model_trained_on_rows_without_such_texts_is_an_error_that_names_the_column(world):
    path = world.path.parent / "store" / "artifacts" / "prepare-1" / "examples.parquet"
    rows = pq.read_table(path)
    at, none = rows.column_names.index("instruction"), pa.array([" "] * len(rows))
    pq.write_table(rows.set_column(at, "instruction", none), path)
    world.talk(1, EVEN)
    with pytest.raises(LedgerError, match="has a text in 'instruction'"):
        world.check()


def test_one_that_waits_for_another_says_so(world):
    world.talk(1, EVEN)
    watch, said = world.watch(), []
    first = world.ledger.try_claim(f"drift/{watch.stream[:40]}")

    class Heard(Silent):
        def say(self, text):
            said.append(text)
            first.__exit__(None, None, None)

    with first:
        watch.check(progress=Heard())
    assert said == ["Another process looks at these windows; waiting until it has."]


def test_training_rows_that_are_gone_are_an_error_that_says_what_to_do(world):
    world.talk(1, EVEN)
    (world.store.root / "artifacts/prepare-1/examples.parquet").unlink()
    with pytest.raises(LedgerError, match="not in this store") as caught:
        world.check()
    assert "observe.drift.against" in caught.value.hint


def test_failed_and_shadow_requests_and_other_versions_are_left_out(world):
    window = Window(int(world.start_s * 1000), int((world.start_s + 3600) * 1000))
    world.talk(1, EVEN, rows=5)
    for more in ({"status": 500}, {"shadow": True}):
        world.next_s = world.start_s + 100 * (1 + len(more))
        world.talk(1, EVEN, rows=5, **more)
    world.digest = "99" * 32
    world.next_s = world.start_s + 1000
    world.talk(1, EVEN, rows=5)
    chosen = choose(world.writers.traffic.log, window, "01" * 32, 100)
    assert chosen.num_requests == len(chosen.ids) == 5


def test_a_conversation_counts_once(world):
    window = Window(int(world.start_s * 1000), int((world.start_s + 3600) * 1000))
    world.talk(1, EVEN, rows=9, conversation="one long talk")
    chosen = choose(world.writers.traffic.log, window, world.digest, 100)
    assert (chosen.num_requests, chosen.num_conversations, len(chosen.ids)) == (9, 1, 1)


def test_fewer_rows_are_the_first_of_those_that_more_would_be(world):
    window = Window(int(world.start_s * 1000), int((world.start_s + 3600) * 1000))
    world.talk(1, EVEN, rows=9)
    few, all_ = (choose(world.writers.traffic.log, window, world.digest, num) for num in (4, 100))
    assert few.ids == all_.ids[:4]
    assert len(all_.ids) == few.num_conversations == 9


def test_what_was_measured_goes_with_its_day_whichever_model_measured_it(world):
    world.talk(2, EVEN)
    world.check()
    world.check(HashedWords(dim=24))
    kept = KeptSamples(world.store.table_at("drift").folder, "another model")
    first = day_of(int(world.start_s * 1000))
    kept.expire(first)
    days = [path.parent.name for path in (world.store.root / "drift").rglob("*.parquet")]
    assert sorted(days) == [first.isoformat()] * 4 + ["training"] * 2
    kept.expire(first + timedelta(days=1))
    days = [path.parent.name for path in (world.store.root / "drift").rglob("*.parquet")]
    assert days == ["training"] * 2


def test_a_window_is_over_two_minutes_after_its_end_and_whole():
    assert closed_windows(1, 7_200_000 + 120_000, 3600) == [Window(3_600_000, 7_200_000)]
    assert closed_windows(1, 7_200_000 + 119_999, 3600) == []
    assert closed_windows(0, 3_600_000 + 120_000, 3600) == [Window(0, 3_600_000)]


def test_nothing_serves(tmp_path):
    world = World(tmp_path / "project")
    with pytest.raises(LedgerError, match="Nothing serves as penny@production"):
        world.watch()
    world.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_rows": 100, "max_rows": 50}, "min_rows 100 is above max_rows 50"),
        ({"columns": ["input", "input"]}, "names something twice"),
        ({"min_rows": 5}, "min_rows"),
        ({"columns": []}, "columns"),
        ({"false_alarms": {"chance": 0}}, "chance"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, settings, message):
    with pytest.raises(RecipeError, match=message):
        World(tmp_path / "project", **settings)


def test_an_embedding_model_that_is_not_there_is_refused(tmp_path):
    world = World(tmp_path / "project", embedding="no-such-folder")
    world.serve(1)
    with pytest.raises(RecipeError, match=r"observe\.drift\.embedding: there is no folder"):
        DriftWatch(world.recipe, world.store, world.ledger)
    world.close()


def test_what_is_observed_enters_no_fingerprint(world):
    text = yaml.safe_load(world.path.read_text())
    del text["observe"]
    plain = world.path.with_name("plain.yaml")
    plain.write_text(yaml.safe_dump(text))
    assert canonical(open_project(plain).recipe) == canonical(world.recipe)
