"""From rows to a served answer with vLLM as what computes: a real one, on CPU."""

import httpx
import openai
import psutil
import pytest
import yaml

import tiny_project
import vllm_environment
from penstock.pipeline import open_pipeline
from penstock.serving.production import served
from penstock.serving.server import BackgroundServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ASKED = {"model": "tiny", "prompt": "What does list text give?", "temperature": 0}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A trained, gated and promoted model; one prompt was tried in vLLM on the way."""
    if vllm_environment.why_not():
        pytest.skip(vllm_environment.why_not())
    path = tiny_project.write_project(tmp_path_factory.mktemp("vllm") / "project")
    recipe = yaml.safe_load(path.read_text())
    # vLLM knows no heads narrower than 32 on CPUs.
    recipe["train"]["model"] |= {"hidden_size": 64, "intermediate_size": 64}
    args = ["--dtype", "float32", "--enforce-eager", "--gpu-memory-utilization", 0.1]
    backend = {"vllm": {"python": str(vllm_environment.PYTHON), "args": args}}
    recipe["serve"] = {
        "port": 0,
        "metrics_port": 0,
        "models": {
            "tiny": {"backend": backend, "fallbacks": ["spare"]},
            "spare": {"registered": "tiny", "backend": "transformers"},
        },
    }
    path.write_text(yaml.safe_dump(recipe))
    pipeline = open_pipeline(path)
    assert pipeline.run().status == "SUCCEEDED"
    return pipeline


@pytest.fixture(scope="module")
def server(pipeline):
    around = served(pipeline.recipe, pipeline.store, pipeline.ledger)
    with BackgroundServer(*around) as server:
        server.wait_ready(600)
        yield server
    below = psutil.Process().children(recursive=True)
    assert [one for one in below if "vllm" in one.name().lower()] == []


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_vllm_gives_the_answer_that_transformers_gives(client):
    tiny = client.completions.create(**ASKED, max_tokens=24)
    spare = client.completions.create(**ASKED | {"model": "spare"}, max_tokens=24)
    assert tiny.choices[0].text == spare.choices[0].text
    assert tiny.choices[0].finish_reason == spare.choices[0].finish_reason
    # Counted by the same tokenizer, to the token.
    assert tiny.usage == spare.usage


def test_vllm_streams_samples_by_seed_and_stops_at_strings(client):
    chunks = list(
        client.completions.create(
            **ASKED, max_tokens=24, stream=True, stream_options={"include_usage": True}
        )
    )
    whole = client.completions.create(**ASKED, max_tokens=24)
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    stopped = client.completions.create(**ASKED, max_tokens=24, stop=text[5:8])
    assert stopped.choices[0].text == text[: text.index(text[5:8])]
    seeded = [
        client.completions.create(**ASKED | {"temperature": 1.0}, max_tokens=16, seed=seed)
        for seed in (7, 7, 8)
    ]
    assert seeded[0].choices[0].text == seeded[1].choices[0].text != seeded[2].choices[0].text


def test_vllm_answers_say_which_version_and_a_prompt_that_is_too_long_is_ours_to_refuse(
    server, client
):
    answer = httpx.post(f"{server.url}/v1/completions", json=ASKED, timeout=60)
    assert answer.headers["x-penstock-model-version"] == "1"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**ASKED | {"prompt": "long " * 400})
    assert caught.value.code == "context_length_exceeded"


def test_vllm_that_is_killed_is_bridged_by_the_fallback(server):
    below = psutil.Process().children(recursive=True)
    (engine,) = [one for one in below if one.name().startswith("VLLM::Engine")][:1]
    engine.kill()

    def who():
        answer = httpx.post(f"{server.url}/v1/completions", json=ASKED, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-penstock-model"]

    while who() == "tiny":
        pass
    assert who() == "spare"
