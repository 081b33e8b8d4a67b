"""Chat templates as models are published with them, and what is wrong with others."""

import pyarrow as pa
import pytest

from penstock.errors import RecipeError
from penstock.tokenizer import CHAT_TEMPLATE
from penstock.transforms.preflight import check_chat, check_text, check_vocabulary
from penstock.transforms.tokenize import IGNORED, Tokenize, TokenizeOptions

pytestmark = pytest.mark.slow  # importing transformers takes seconds

# Qwen 2: ChatML, with a system message of its own.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + "
    "message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' "
    "+ message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and "
    "add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
# Qwen 3 puts an empty thought before an answer that has none.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'assistant') %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


def tokenizer(template, eos, extra=()):
    import tokenizers
    import transformers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    special = list(dict.fromkeys(["<bos>", eos, *extra]))
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["It holds the water."], trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<bos>",
        eos_token=eos,
        additional_special_tokens=special[2:],
    )
    fast.chat_template = template
    return fast


IM = ("<|im_start|>", "<|im_end|>")
GOOD = {
    "chatml": (CHATML, "<|im_end|>", IM),
    "llama 3": (LLAMA_3, "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "mistral": (MISTRAL, "</s>", ()),
    "zephyr": (ZEPHYR, "</s>", ()),
    "thinking": (THINKING, "<|im_end|>", IM),
    "ours": (CHAT_TEMPLATE, "<|end|>", ("<|user|>", "<|assistant|>")),
}


@pytest.mark.parametrize("name", GOOD)
def test_templates_of_published_chat_models_pass_and_train_the_end_of_the_turn(name, tmp_path):
    good = tokenizer(*GOOD[name])
    check_chat(good, "It")
    good.save_pretrained(tmp_path)
    transform = Tokenize(TokenizeOptions(folder=tmp_path))
    transform.open()
    rows = pa.table({"_row_id": ["1"], "instruction": ["What is it?"], "response": ["A gate."]})
    labels = transform(rows).kept["labels"][0].as_py()
    learned = [label for label in labels if label != IGNORED]
    assert good.eos_token_id in learned
    assert "A gate." in good.decode(learned)
    assert "What is it?" not in good.decode(learned)


BAD = {
    "no template": (None, "</s>", "has no chat template"),
    "only users": (
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] + eos_token }}{% endfor %}",
        "</s>",
        "no token to learn",
    ),
    "only the assistant": (
        "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
        "{% endfor %}",
        "</s>",
        "without what the user says",
    ),
    "no generation prompt": (
        CHATML.partition("{% if add_generation_prompt")[0],
        "<|im_end|>",
        "would learn to write that itself",
    ),
    "the end is written with the next turn": (
        "{% for m in messages %}{% if not loop.first %}{{ eos_token }}{% endif %}"
        "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ eos_token }}{% endif %}",
        "</s>",
        "without the token that ends generation",
    ),
    "the end of a base model, not of a turn": (CHATML, "<|endoftext|>", "<|endoftext|>"),
    "a turn that ends in another token": (GEMMA, "<eos>", "without the token that ends"),
    "not jinja": ("{% for m in messages %}{{ m.content }}", "</s>", "it fails on a question"),
    "refuses": ("{{ raise_exception('Not for you') }}", "</s>", "Not for you"),
    "adds a null": ("{% for m in messages %}{{ m['content'] + none }}{% endfor %}", "</s>",
                    "it fails on a question"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_templates_that_cannot_be_trained_with_are_refused_with_what_they_do(name):
    template, eos, message = BAD[name]
    with pytest.raises(RecipeError) as caught:
        check_chat(tokenizer(template, eos, IM), "The base model base")
    assert message in caught.value.message
    assert caught.value.hint


def test_a_base_model_without_template_is_told_what_to_set():
    with pytest.raises(RecipeError, match="The base model base has no chat template") as caught:
        check_chat(tokenizer(None, "</s>"), "The base model base")
    assert "prepare.chat_template" in caught.value.hint
    assert "prepare.text_column" in caught.value.hint


def test_marks_for_other_trainers_do_not_keep_the_end_from_being_learned(tmp_path):
    template = CHATML.replace("+ message['content'] +", "}}{% generation %}{{ message['content'] }}"
                              "{% endgeneration %}{{")  # fmt: skip
    check_chat(tokenizer(template, "<|im_end|>", IM), "It")


def test_plain_text_needs_a_token_that_ends_it():
    plain = tokenizer(None, "</s>")
    check_text(plain, "It")
    plain.eos_token = None
    with pytest.raises(RecipeError, match="no token that ends a text"):
        check_text(plain, "It")


def test_a_token_without_an_embedding_is_refused():
    one = tokenizer(None, "</s>")
    check_vocabulary(one, len(one), "It")
    with pytest.raises(RecipeError, match=f"has {len(one) - 1} embeddings"):
        check_vocabulary(one, len(one) - 1, "It")
    one.add_tokens(["<another>"])
    with pytest.raises(RecipeError, match="tokens up to number"):
        check_vocabulary(one, len(one) - 1, "It")
