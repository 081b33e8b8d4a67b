"""Objects in S3: read from a real server that speaks its protocol (moto's), by the real client."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.errors import SourceError, SourceUnavailable
from penstock.sources.base import DeadLetter
from penstock.sources.files import FilesSource
from penstock.sources.objects import _regex


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer  # takes seconds, also when no test here is run

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "hush-hush",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    client = boto3.client("s3")
    made = boto3.resource("s3").create_bucket(Bucket="lake")
    yield client
    made.objects.all().delete()
    made.delete()


def put(client, key, *rows):
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    client.put_object(Bucket="lake", Key=key, Body=body)


def source(*paths, **options):
    return FilesSource(FilesSource.Options(paths=list(paths), **options), Path())


def rows_of(made, unit):
    batches = [piece for piece in made.read(unit) if not isinstance(piece, DeadLetter)]
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.mark.slow
def test_objects_are_found_by_glob_and_read_in_the_order_of_their_keys(bucket):
    put(bucket, "in/b.jsonl", {"n": 2})
    put(bucket, "in/a.jsonl", {"n": 1}, {"n": 3})
    put(bucket, "in/deep/c.jsonl", {"n": 4})
    put(bucket, "in/a.txt", {"n": 5})
    made = source("s3://lake/in/*.jsonl")
    first, second = made.snapshot()
    assert [row["n"] for row in rows_of(made, first)] == [1, 3]
    assert rows_of(made, second) == [{"n": 2, "_origin": "s3://lake/in/b.jsonl:1"}]
    assert len(source("s3://lake/in/**/*.jsonl").snapshot()) == 3
    assert source("s3://lake/in/a.jsonl").snapshot() == (first,)


def test_a_copy_under_another_key_is_not_read_twice(bucket):
    put(bucket, "a.jsonl", {"n": 1})
    put(bucket, "b.jsonl", {"n": 1})
    assert len(source("s3://lake/*.jsonl").snapshot()) == 1


@pytest.mark.slow
def test_compressed_objects_csv_and_parquet_are_read_like_files(bucket):
    table = pa.table({"n": [1, 2]})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    bucket.put_object(Bucket="lake", Key="a.parquet", Body=sink.getvalue())
    bucket.put_object(Bucket="lake", Key="b.csv", Body=b"n\n1\n2\n")
    for key in ("a.parquet", "b.csv"):
        made = source(f"s3://lake/{key}")
        assert [row["n"] for row in rows_of(made, made.snapshot()[0])] == [1, 2]


@pytest.mark.slow
def test_an_object_that_changed_or_went_since_it_was_pinned_is_refused(bucket):
    put(bucket, "a.jsonl", {"n": 1})
    made = source("s3://lake/a.jsonl")
    (unit,) = made.snapshot()
    put(bucket, "a.jsonl", {"n": 2})
    with pytest.raises(SourceUnavailable, match="has changed since it was pinned"):
        list(made.read(unit))
    bucket.delete_object(Bucket="lake", Key="a.jsonl")
    with pytest.raises(SourceUnavailable, match="is gone or has changed"):
        list(made.read(unit))


@pytest.mark.slow
def test_what_only_marks_a_folder_is_passed_over(bucket):
    bucket.put_object(Bucket="lake", Key="in/", Body=b"")
    bucket.put_object(Bucket="lake", Key="in/deep/", Body=b"")
    put(bucket, "in/a.jsonl", {"n": 1})
    for glob in ("s3://lake/in/*", "s3://lake/in/**/*"):
        assert [unit.label for unit in source(glob).snapshot()] == ["s3://lake/in/a.jsonl"]
    with pytest.raises(SourceUnavailable, match="No object matches"):
        source("s3://lake/in/deep/*").snapshot()


@pytest.mark.slow
def test_what_is_not_there_is_said_and_an_empty_object_is_passed_over(bucket):
    bucket.put_object(Bucket="lake", Key="empty.jsonl", Body=b"")
    with pytest.raises(SourceUnavailable, match=r"nothing in s3://lake/empty\.jsonl"):
        source("s3://lake/empty.jsonl").snapshot()
    with pytest.raises(SourceUnavailable, match="No object matches"):
        source("s3://lake/x/*.jsonl").snapshot()
    with pytest.raises(SourceError, match="there is no such bucket"):
        source("s3://desert/x.jsonl").snapshot()
    with pytest.raises(SourceError, match="names no object"):
        source("s3://lake").snapshot()


@pytest.mark.slow
def test_a_store_that_is_down_or_refuses_is_said_without_the_secret(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SourceUnavailable) as error:
        source("s3://lake/a.jsonl").snapshot()
    assert "hush-hush" not in str(error.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(SourceError, match="Unable to locate credentials"):
        source("s3://lake/a.jsonl").snapshot()


@pytest.mark.parametrize(
    ("glob", "key", "matches"),
    [
        ("a/*.jsonl", "a/b.jsonl", True),
        ("a/*.jsonl", "a/b/c.jsonl", False),
        ("a/**/c.jsonl", "a/c.jsonl", True),
        ("a/**/c.jsonl", "a/b/d/c.jsonl", True),
        ("a?[0-9].x", "ab7.x", True),
        ("a[!0-9].x", "a7.x", False),
        ("a+(b).x", "a+(b).x", True),
        ("a[.x", "a[.x", True),
    ],
)
def test_globs_match_as_in_a_shell(glob, key, matches):
    import re

    assert (re.fullmatch(_regex(glob), key) is not None) == matches
