import json
import random
import time
from collections import Counter

import pytest

import kafka_broker
import kafka_writer

NUM_WRITERS = 4
NUM_KILLS = 200
NUM_PARTITIONS = 4
PER_KILL = 20  # messages sent meanwhile, so that there is always something to ingest
PART = 50


def _messages(draw, start):
    """Some rows, and one poison in ten."""
    return [
        b"poison" if draw.random() < 0.1 else json.dumps({"n": n}).encode()
        for n in range(start, start + PER_KILL)
    ]


@pytest.mark.slow
def test_of_four_writers_killed_200_times_nothing_is_lost_and_nothing_doubled(tmp_path):
    draw = random.Random(7)
    context = kafka_writer.context()
    sent: dict[str, bytes] = {}
    with kafka_broker.running() as broker:
        topic = broker.topic(NUM_PARTITIONS)

        def send(start):
            partition = draw.randrange(NUM_PARTITIONS)
            values = _messages(draw, start)
            broker.send(topic, values, partition=partition)
            first = sum(origin.startswith(f"{topic}/{partition}@") for origin in sent)
            for i, value in enumerate(values):
                sent[f"{topic}/{partition}@{first + i}"] = value

        given = (tmp_path, broker.address, topic, PART)

        def start_one(life_s):
            process = context.Process(target=kafka_writer.write, args=given, daemon=True)
            process.start()
            return process, time.monotonic() + draw.uniform(0.3, 3) * life_s

        def until_the_first_commit_s():
            """On a busy machine a writer that is killed too early never commits at all."""
            taking, began = kafka_writer.ingester(*given), time.monotonic()
            before = taking.table.count_rows()
            process, _ = start_one(0)
            while taking.table.count_rows() == before and time.monotonic() < began + 60:
                time.sleep(0.02)
            process.kill()
            process.join()
            return time.monotonic() - began

        for kill in range(NUM_PARTITIONS * 3):
            send(kill * PER_KILL)
        _, life_s = until_the_first_commit_s(), until_the_first_commit_s()
        writers = [start_one(life_s) for _ in range(NUM_WRITERS)]
        table = kafka_writer.ingester(*given).table
        version = table.version()
        for kill in range(NUM_KILLS):
            process, at = writers.pop(writers.index(min(writers, key=lambda one: one[1])))
            time.sleep(max(0.0, at - time.monotonic()))
            assert process.is_alive(), "a writer died of something else"
            process.kill()
            process.join()
            send((kill + 100) * PER_KILL)
            if kill % 10 == 9:
                # Four at once, beside whatever else runs, take longer than one alone.
                life_s *= 1.5 if table.version() < version + 5 else 1
                version = table.version()
            writers.append(start_one(life_s))
        for process, _ in writers:
            process.kill()
            process.join()

        taking = kafka_writer.ingester(*given)
        before = taking.table.count_rows() + taking.dead.count_rows()
        for unit in taking.source.snapshot():
            taking.take(unit)

    rows = [row for batch in taking.table.scan() for row in batch.to_pylist()]
    letters = [row for batch in taking.dead.scan() for row in batch.to_pylist()]
    found = Counter(one["_origin"] for one in [*rows, *letters])
    assert not sent.keys() - found.keys(), "lost"
    assert not [origin for origin, times in found.items() if times > 1], "doubled"
    assert len(found) == len(sent) == (NUM_KILLS + 3 * NUM_PARTITIONS) * PER_KILL
    for row in rows:
        assert json.loads(sent[row["_origin"]]) == {"n": row["n"]}
    assert {sent[letter["_origin"]] for letter in letters} == {b"poison"}
    assert len({row["_row_id"] for row in rows}) == len(rows)
    # The writers did the work, in many commits, and not the last one alone.
    assert before > len(sent) / 2
    assert taking.table.version() > 50
