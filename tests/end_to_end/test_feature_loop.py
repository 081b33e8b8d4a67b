"""The loop with a feature store: joined for training, asked while serving."""

import json

import openai
import pyarrow.parquet as pq
import pytest
import yaml

import feast_repo
import tiny_project
from penstock.pipeline import open_pipeline
from penstock.prompt import Prompt
from penstock.serving.production import served
from penstock.serving.server import BackgroundServer

pytestmark = pytest.mark.slow

FEATURES = {
    "type": "feast",
    "repo": "features",
    "python": str(feast_repo.PYTHON),
    "timeout_s": 10,
    "names": ["profile:plan", "profile:tickets"],
    "entities": {"user_id": "customer"},
    "timestamp": "asked_at",
    "template": "plan {plan}, tickets {tickets}. {instruction}",
}


def write_project(folder):
    path = tiny_project.write_project(folder)
    recipe = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**recipe, "features": FEATURES}))
    rows = folder / "data" / "first.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["customer"] = ["a", "b", "nobody"][number % 3]
        line["asked_at"] = "2026-02-01T00:00:00Z" if number % 2 else "2026-04-01T00:00:00Z"
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    feast_repo.write(folder / "features")
    return path


def test_a_model_learns_and_answers_with_the_features_of_its_users(tmp_path):
    why_not = feast_repo.environment()
    if why_not:
        pytest.skip(f"Feast's environment cannot be made: {why_not}")
    path = write_project(tmp_path / "project")
    pipeline = open_pipeline(path)
    report = pipeline.run()
    assert report.status == "SUCCEEDED"
    prepared = report.artifacts["prepare"]
    # A third of 60 rows are nobody's, and two of those were in quarantine already.
    assert prepared.summary["removed"]["features"] == 18
    examples = pq.read_table(pipeline.store.folder(prepared) / "examples.parquet").to_pylist()
    begins = {row["customer"]: set() for row in examples}
    for row in examples:
        begins[row["customer"]].add(row["instruction"].partition(".")[0])
    assert begins["a"] == {"plan free, tickets 1", "plan pro, tickets 2"}
    assert begins["b"] == {"plan free, tickets 3"}
    with feast_repo.serving(path.parent / "features") as url:
        changed = {"serve.models": {"tiny": {}}, "serve.port": 0, "serve.metrics_port": None}
        told = open_pipeline(path, {"features.url": url, **changed})
        with BackgroundServer(*served(told.recipe, told.store, told.ledger)) as server:
            server.wait_ready()
            _check_prompts(server)


def _check_prompts(server):
    text = next(iter(server.gateway.models.values())).table.current.text
    assert isinstance(text.prompt, Prompt)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        def num_prompt_tokens(**fields):
            messages = [{"role": "user", "content": "What?"}]
            answer = client.chat.completions.create(
                model="tiny", messages=messages, max_tokens=1, **fields
            )
            return answer.usage.prompt_tokens

        expected = [{"role": "user", "content": "plan pro, tickets 2. What?"}]
        assert num_prompt_tokens(metadata={"customer": "a"}) == len(text.encode_chat(expected))
        with pytest.raises(openai.BadRequestError, match="does not say customer"):
            num_prompt_tokens()
