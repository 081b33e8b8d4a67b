"""A loop whose deploy starts a trial: real training, real files, a real gateway, MLflow's alias."""

import contextlib
import os
import time

import httpx
import pytest
import yaml

import tiny_project
from penstock import models
from penstock.ledger.rollout_records import State
from penstock.ledger.rollouts import Rollouts
from penstock.pipeline import open_pipeline
from penstock.rollout_replay import replay
from penstock.serving.production import served
from penstock.serving.rollouts import rolling_out
from penstock.serving.server import BackgroundServer

pytestmark = pytest.mark.slow

ROLLOUT = {
    "steps": [30, 50, 100],
    "min_requests": 5,
    "margins": {"errors": 0.5, "latency": None},
    "harm_above": {"latency": 20},
}


def test_a_version_that_passed_is_tried_on_live_requests_and_then_serves(tmp_path):
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "GX_ANALYTICS_ENABLED": "false"}
    path = tiny_project.write_project(tmp_path / "project")
    recipe = yaml.safe_load(path.read_text())
    recipe |= {
        "deploy": {"rollout": ROLLOUT},
        "serve": {"port": 0, "metrics_port": 0, "models": {"tiny": {}}},
    }
    path.write_text(yaml.safe_dump(recipe))
    pipeline = open_pipeline(path)
    assert "tiny version 1 is in production" in pipeline.run().message
    config, around = served(pipeline.recipe, pipeline.store, pipeline.ledger)
    with contextlib.ExitStack() as stack:
        around = stack.enter_context(
            rolling_out(pipeline.recipe, pipeline.store, pipeline.ledger, config, around)
        )
        server = stack.enter_context(BackgroundServer(config, around))
        server.wait_ready()
        tiny_project.write_rows(path.parent / "data" / "second.jsonl", 40, seed=2)
        report = pipeline.run()
        assert report.status == "SUCCEEDED"
        assert "version 2 is on trial against version 1" in report.message
        assert pipeline.ledger.pointer("tiny").version == 1
        answered = ask_until_promoted(server, pipeline)
    ended = Rollouts(pipeline.ledger.database).of("tiny", "production")[0]
    assert (ended.state, pipeline.ledger.pointer("tiny").version) == (State.PROMOTED, 2)
    assert answered == {"1", "2"}
    assert models.production(pipeline).registry.alias("tiny", "production") == 2
    assert all(one.same for one in replay(Rollouts(pipeline.ledger.database), ended))
    later = open_pipeline(path, {"ingest.min_new_examples": 0}).run()
    assert f"version 2 is in production; rollout {ended.id}" in later.message
    pipeline.ledger.close()


def ask_until_promoted(server, pipeline):
    """Ask without a pause; returns the versions that answered."""
    table, answered = server.gateway.models["tiny"].table, set()
    end_s = time.monotonic() + 120
    with httpx.Client(timeout=30) as client:
        while table.current.served.version != 2:
            assert time.monotonic() < end_s, server.gateway.readiness()
            body = {"model": "tiny", "prompt": "What", "max_tokens": 2}
            answer = client.post(f"{server.url}/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            answered.add(answer.headers["x-penstock-model-version"])
    return answered
