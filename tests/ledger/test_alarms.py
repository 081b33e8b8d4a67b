import threading

import pytest

from penstock.errors import LedgerError
from penstock.ledger import Ledger
from penstock.ledger.alarms import Alarm, Alarms, AlarmState, settle


def alarm(key="window 7", **values):
    wanted = {"recipe": "support", "kind": "drift", "raised_s": 10.0, **values}
    return Alarm(key=key, **wanted)


@pytest.fixture
def alarms(ledger):
    return Alarms(ledger)


def test_an_alarm_is_read_as_it_was_raised(alarms):
    raised = alarm(severity="critical", evidence={"p": 0.01, "clusters": ["a", "ü\x00"]})
    record = alarms.raise_(raised)
    assert alarms.find(record.number) == record
    assert record.alarm == raised
    assert record.state is AlarmState.OPEN
    assert record.received_s > 10
    assert [event.reason for event in alarms.events(record.number)] == ["raised"]


def test_the_same_event_is_raised_once_and_its_first_word_counts(alarms):
    first = alarms.raise_(alarm(severity="warning"))
    assert alarms.raise_(alarm(severity="critical", raised_s=99.0)) == first
    assert [one.number for one in alarms.of("support")] == [first.number]
    assert len(alarms.events(first.number)) == 1


def test_another_kind_key_or_recipe_is_another_alarm(alarms):
    for other in (alarm(), alarm(kind="alert"), alarm(key="window 8"), alarm(recipe="other")):
        alarms.raise_(other)
    assert len(alarms.of("support")) == 3
    assert [one.number for one in alarms.open("support")] == [1, 2, 3]
    assert len(alarms.of("other")) == 1


def test_those_who_raise_the_same_at_once_find_one_alarm(alarms, ledger_url):
    numbers, start = [], threading.Barrier(4)

    def race():
        own = Ledger(ledger_url)
        start.wait()
        numbers.extend(Alarms(own).raise_(alarm(key=f"{i % 5}")).number for i in range(20))
        own.close()

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(numbers) == 80
    assert len(set(numbers)) == 5
    assert {len(alarms.events(number)) for number in numbers} == {1}


def test_a_raised_again_alarm_that_was_closed_stays_closed(alarms):
    record = alarms.raise_(alarm())
    alarms.decide(record.number, AlarmState.CLOSED, "a test of ours", "ann")
    assert alarms.raise_(alarm()).state is AlarmState.CLOSED
    assert alarms.open("support") == []


def test_a_person_s_word_says_who_why_and_when(alarms):
    number = alarms.raise_(alarm()).number
    seen = alarms.decide(number, AlarmState.ACKNOWLEDGED, "looking", "ann")
    assert seen.is_open
    assert not alarms.decide(number, AlarmState.VETOED, "a known campaign", "bob").is_open
    _, acknowledged, vetoed = alarms.events(number)
    assert (acknowledged.actor, acknowledged.reason) == ("ann", "looking")
    assert (vetoed.actor, vetoed.state) == ("bob", AlarmState.VETOED)
    assert vetoed.at_s >= acknowledged.at_s > 0


def test_what_is_decided_is_not_decided_again(alarms, ledger):
    number = alarms.raise_(alarm()).number
    with ledger.database.write() as connection:
        assert settle(connection, [number], AlarmState.ANSWERED, "run", start_key="alarm-1") == 1
        assert settle(connection, [number], AlarmState.ANSWERED, "run", start_key="alarm-2") == 0
    assert [one.number for one in alarms.answered_by("support", "alarm-1")] == [number]
    with pytest.raises(LedgerError, match="is answered by alarm-1 already"):
        alarms.decide(number, AlarmState.VETOED, "too late")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "weather"}, "no kind of alarm"),
        ({"severity": "fatal"}, "no severity"),
        ({"key": ""}, "printable"),
        ({"key": "x" * 201}, "printable"),
        ({"key": "a\x00b"}, "printable"),
        ({"evidence": {"p": float("nan")}}, "no JSON"),
        ({"evidence": {"p": object()}}, "no JSON"),
        ({"evidence": {"long": "x" * 70_000}}, "more than 64000"),
    ],
)
def test_what_is_no_alarm_is_refused(alarms, wrong, said):
    with pytest.raises(LedgerError, match=said):
        alarms.raise_(alarm(**wrong))
    assert alarms.of("support") == []


def test_nothing_is_decided_without_a_reason_or_about_what_is_not_there(alarms):
    number = alarms.raise_(alarm()).number
    with pytest.raises(LedgerError, match="without a reason"):
        alarms.decide(number, AlarmState.CLOSED, " ")
    with pytest.raises(LedgerError, match="does not make"):
        alarms.decide(number, AlarmState.ANSWERED, "mine")
    with pytest.raises(LedgerError, match="no alarm 99"):
        alarms.decide(99, AlarmState.CLOSED, "gone")


def test_open_and_past_alarms_are_listed_a_page_at_a_time(alarms):
    numbers = [alarms.raise_(alarm(key=f"{i}")).number for i in range(6)]
    alarms.raise_(alarm(recipe="other"))
    for number in numbers[:4]:
        alarms.decide(number, AlarmState.CLOSED, f"over {number}")
    assert [one.number for one in alarms.newest("support", True, 10)] == numbers[:3:-1]
    assert alarms.num_open("support") == 2
    first = [one.number for one in alarms.newest("support", False, 3)]
    assert first == numbers[3:0:-1]
    assert [one.number for one in alarms.newest("support", False, 3, first[-1])] == numbers[:1]
    assert alarms.newest("support", False, 3, 10**12)[0].number == numbers[3]
    last = alarms.last_events(numbers)
    assert last[numbers[0]].reason == f"over {numbers[0]}"
    assert last[numbers[5]].state is AlarmState.OPEN


def test_an_alarm_of_another_recipe_is_not_found(alarms):
    number = alarms.raise_(alarm()).number
    assert alarms.find(number, "support").number == number
    with pytest.raises(LedgerError, match="another recipe"):
        alarms.find(number, "other")
