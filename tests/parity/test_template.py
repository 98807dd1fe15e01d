"""Conversations rendered here and by transformers."""

import dataclasses

import pytest

from gpt2_mlx import GPT2, GPT2Config, checkpoint, template, tokenizer

transformers = pytest.importorskip("transformers")

CONVERSATIONS = [
    [("user", "Hi")],
    [("system", " Be brief. "), ("user", "Who are you?"), ("assistant", "A model.\n"), ("user", "\tSure?  ")],
    [("user", "naïve 🙂\n\nassistant:\n"), ("assistant", ""), ("user", "")],
]
DIALOGPT = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("written", [template.OURS, DIALOGPT])
def test_transformers_renders_the_same_text_and_tokens(written, tmp_path):
    vocabulary = dataclasses.replace(tokenizer.gpt2(), template=written)
    checkpoint.save(tmp_path / "saved", GPT2(GPT2Config(n_layer=1, n_head=1, n_embd=8)), vocabulary=vocabulary)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for pairs in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in pairs]
        for answers_next in (True, False):
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=answers_next)
            assert template.render(written, messages, answers_next) == text
            ids = theirs.apply_chat_template(messages, add_generation_prompt=answers_next, return_dict=False)
            assert template.encode(vocabulary.encoding, text) == ids
