"""The official client, unchanged, against real models."""

import asyncio

import openai
import pytest
from doubles import Pointer, served
from tiny_llama import TEXTS, save_llama, save_trained_llama

from penstock.serve_section import Serve
from penstock.serving.gateway import Surroundings
from penstock.serving.server import BackgroundServer

pytestmark = pytest.mark.slow

CHAT = [{"role": "user", "content": "the quick"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_trained_llama(root / "v1")
    save_llama(root / "v2", seed=2)
    return root


@pytest.fixture(scope="module")
def pointer(folders):
    return Pointer(served(folders / "v1", 1))


@pytest.fixture(scope="module")
def server(pointer, tmp_path_factory):
    config = Serve(port=0, metrics_port=0, poll_interval_s=0.05).completed("penny")
    around = Surroundings(pointer, tmp_path_factory.mktemp("cache"))
    with BackgroundServer(config, around) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["penny", "all-MiniLM-L6-v2"]
    assert client.models.retrieve("penny").owned_by == "penstock"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_chat(client):
    answer = client.chat.completions.create(
        model="penny", messages=CHAT, max_completion_tokens=8, temperature=0
    )
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_completion_knows_what_the_model_learned(client):
    answer = client.completions.create(
        model="penny", prompt="<s>the quick", max_tokens=60, temperature=0, stop=[" lazy"]
    )
    assert answer.choices[0].text == TEXTS[0].removeprefix("the quick").split(" lazy")[0]
    assert answer.choices[0].finish_reason == "stop"


def test_streams_join_to_the_whole_answer(client):
    ask = {"model": "penny", "messages": CHAT, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**ask)
    stream = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(event.choices[0].delta.content or "" for event in stream if event.choices)
    assert text == whole.choices[0].message.content
    assert stream[-1].usage == whole.usage
    assert stream[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_clients_own_stream_helper_understands_us(client):
    with client.chat.completions.stream(
        model="penny", messages=CHAT, stop=["e", "o", " "]
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"


def test_a_seed_makes_sampling_repeatable(client):
    def sample(seed):
        return (
            client.completions.create(model="penny", prompt="fox", max_tokens=20, seed=seed)
            .choices[0]
            .text
        )

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_embeddings_come_in_the_clients_default_encoding_and_as_floats(client):
    texts = ["a dog", "a puppy", "a turbine"]
    packed = client.embeddings.create(model="all-MiniLM-L6-v2", input=texts)
    plain = client.embeddings.create(model="all-MiniLM-L6-v2", input=texts, encoding_format="float")
    assert [len(entry.embedding) for entry in packed.data] == [384] * 3
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding, abs=1e-6)


def test_errors_are_the_clients_own_classes(client):
    def ask(**more):
        return client.chat.completions.create(**{"model": "penny", "messages": CHAT, **more})

    with pytest.raises(openai.NotFoundError) as caught:
        ask(model="gpt-4")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(max_tokens=-1)
    assert caught.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError, match="not supported"):
        ask(n=2)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(messages=[{"role": "user", "content": "x " * 2_000}])
    assert caught.value.code == "context_length_exceeded"


def test_the_async_client_streams_many_answers_at_once(server):
    prompts = ["the quick", "water"]

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def one(number):
                stream = await client.completions.create(
                    model="penny",
                    prompt="<s>" + prompts[number % 2],
                    max_tokens=60,
                    temperature=0,
                    stream=True,
                )
                return "".join([event.choices[0].text async for event in stream])

            return await asyncio.gather(*(one(number) for number in range(24)))

    for number, text in enumerate(asyncio.run(main())):
        assert text == TEXTS[number % 2].removeprefix(prompts[number % 2])


def test_promotions_of_real_models_under_load_drop_and_mix_nothing(server, pointer, folders):
    async def ask(client):
        raw = await client.completions.with_raw_response.create(
            model="penny", prompt="<s>the quick", max_tokens=30, temperature=0
        )
        return raw.headers["x-penstock-model-version"], raw.parse().choices[0].text

    async def hammer(client, stop, seen):
        while not stop.is_set():
            seen.append(await ask(client))

    async def main():
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0
        ) as client:
            stop, seen = asyncio.Event(), []
            clients = [asyncio.create_task(hammer(client, stop, seen)) for _ in range(8)]
            for move in range(6):
                number = 1 + (move + 1) % 2
                pointer.version = served(folders / f"v{number}", number, epoch=100 + move)
                async with asyncio.timeout(30):
                    while server.gateway.models["penny"].table.current.served.epoch != 100 + move:
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
            stop.set()
            await asyncio.gather(*clients)
            return seen

    seen = asyncio.run(main())
    answers = {version: {text for v, text in seen if v == version} for version in ("1", "2")}
    assert answers["1"] == {TEXTS[0].removeprefix("the quick")}
    assert len(answers["2"]) == 1
    assert answers["1"] != answers["2"]
