"""LangChain's and LiteLLM's clients, as their users use them, without a word of ours."""

import os

import pytest
from doubles import model

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network when imported

pytestmark = pytest.mark.slow
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture
def url(gateway, fake_folders):
    rank = model(task="rerank", source=str(fake_folders[2]))
    return gateway(more={"rank": rank}).url


class TestLangChain:
    @pytest.fixture
    def chat(self, url):
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model="penny", base_url=f"{url}/v1", api_key="none", max_retries=0)

    def test_chats_and_streams(self, chat):
        answer = chat.invoke("hello")
        assert answer.content == "v1"
        assert answer.usage_metadata["output_tokens"] == 3
        assert answer.response_metadata["finish_reason"] == "stop"
        pieces = list(chat.stream("hello"))
        assert "".join(piece.content for piece in pieces) == "v1"

    def test_embeds(self, url):
        from langchain_openai import OpenAIEmbeddings

        embeddings = OpenAIEmbeddings(
            model="vectors",
            base_url=f"{url}/v1",
            api_key="none",
            check_embedding_ctx_length=False,  # counts tokens by OpenAI's tokenizer
        )
        assert embeddings.embed_documents(["ab", "abc"])[1] == [3.0, 1.5, -2.0]

    def test_a_mistake_is_openais_error(self, url):
        import openai
        from langchain_openai import ChatOpenAI

        chat = ChatOpenAI(model="nobody", base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.NotFoundError, match="no model 'nobody'"):
            chat.invoke("hello")


class TestLiteLlm:
    @pytest.fixture
    def ask(self, url):
        import litellm

        litellm.telemetry = False

        def ask(function, name="openai/penny", base="/v1", **more):
            return getattr(litellm, function)(
                model=name, api_base=url + base, api_key="none", num_retries=0, **more
            )

        return ask

    def test_chats_and_streams(self, ask):
        answer = ask("completion", messages=CHAT)
        assert answer.choices[0].message.content == "v1"
        assert answer.usage.completion_tokens == 3
        stream = ask("completion", messages=CHAT, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in stream) == "v1"

    def test_embeds(self, ask):
        found = ask("embedding", "openai/vectors", input=["abc"])
        assert found.data[0]["embedding"] == [3.0, 1.5, -2.0]

    @pytest.mark.parametrize(("kind", "base"), [("jina_ai", "/v1"), ("cohere", "")])
    def test_reranks_as_jina_and_as_cohere(self, ask, kind, base):
        documents = ["xyz", "cab"]
        found = ask("rerank", f"{kind}/rank", base, query="abc", documents=documents, top_n=1)
        assert [one["index"] for one in found.results] == [1]

    def test_a_mistake_is_litellms_own_error(self, ask):
        import litellm

        with pytest.raises(litellm.NotFoundError, match="no model 'nobody'"):
            ask("completion", "openai/nobody", messages=CHAT)
