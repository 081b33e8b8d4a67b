"""The loop with its store in S3, on two hosts that share a ledger: two folders, one bucket."""

import shutil

import boto3
import pytest
import yaml

import s3_server
import tiny_project
from penstock import models
from penstock.artifacts import damaged_files
from penstock.errors import StoreError
from penstock.explain import explain
from penstock.lineage import trace
from penstock.pipeline import open_pipeline
from penstock.serving.production import served
from penstock.serving.response_id import new_response_id

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bucket():
    with s3_server.running():
        client = boto3.client("s3")
        client.create_bucket(Bucket="lake")
        yield client


@pytest.fixture(scope="module")
def hosts(bucket, tmp_path_factory):
    """Two hosts' folders with the same project; the loop has turned once on the first."""
    place = tmp_path_factory.mktemp("hosts")
    path = tiny_project.write_project(place / "first")
    shared = {
        "store": "s3://lake/tiny",
        "ledger": f"sqlite:///{place}/ledger.db",
        "tracking": f"sqlite:///{place}/mlflow.db",
    }
    recipe = {**yaml.safe_load(path.read_text()), **shared}
    recipe["evaluate"]["task_dir"] = str(place / "first" / "tasks")
    path.write_text(yaml.safe_dump(recipe))
    shutil.copytree(place / "first", place / "second")
    assert opened(place / "first").run().status == "SUCCEEDED"
    return place / "first", place / "second"


def opened(folder):
    return open_pipeline(folder / "recipe.yaml", {"ingest.min_new_examples": 0})


def test_another_host_finds_every_result(hosts):
    report = opened(hosts[1]).run()
    outcomes = {one.stage: one.outcome for one in report.stages}
    assert outcomes.pop("baseline") == "skipped"
    assert set(outcomes.values()) == {"hit"}


def test_another_host_serves_downloads_and_traces_what_the_first_made(hosts, tmp_path):
    pipeline = opened(hosts[1])
    _, around = served(pipeline.recipe, pipeline.store, pipeline.ledger)
    version = around.pointers.targets("tiny").champion
    assert version.folder.is_relative_to(hosts[1] / ".penstock")
    version.fetch()
    assert damaged_files(version.folder) == []
    model = models.download(pipeline, None, None, tmp_path / "model")
    assert model.version == 1
    assert (tmp_path / "model" / "model.safetensors").is_file()
    traced = trace(new_response_id("chatcmpl", model.digest), pipeline.ledger, pipeline.store)
    assert traced.sources[0].num_rows == 60
    (story,) = explain(pipeline, "first.jsonl:1")
    assert story.prepared[0].outcome == "kept"
    (held,) = explain(pipeline, "first.jsonl:30")
    assert held.held


def test_more_rows_go_on_where_the_first_host_stopped(hosts):
    tiny_project.write_rows(hosts[1] / "data" / "second.jsonl", 40, seed=2)
    report = opened(hosts[1]).run()
    assert report.status == "SUCCEEDED"
    assert report.artifacts["ingest"].summary["rows"] == {"out": 40, "total": 100}
    assert report.artifacts["train"].summary["base"] == "tiny version 1"


def test_bytes_that_changed_in_the_bucket_are_not_promoted(hosts, bucket):
    pipeline = opened(hosts[0])
    key = f"tiny/{pipeline.ledger.model('tiny', 1).path}/model.safetensors"
    body = bucket.get_object(Bucket="lake", Key=key)["Body"].read()
    bucket.put_object(Bucket="lake", Key=key, Body=body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"is damaged: model\.safetensors"):
        models.production(pipeline).promote(1, "by hand")
    bucket.put_object(Bucket="lake", Key=key, Body=body)
    assert models.production(pipeline).promote(1, "by hand").version == 1
