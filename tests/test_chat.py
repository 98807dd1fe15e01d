"""POST /v1/chat/completions: OpenAI's shapes, by its own client and by hand."""

import json

import openai
import pytest
from client import CHAT, CHATTY, COMPLETIONS, check_error, serving, text_of
from fake_engine import ENCODING, SCRIPT

from gpt2_mlx import GPT2, checkpoint, template, tokenizer
from gpt2_mlx.commands import replay
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.serving import chat, receipts
from gpt2_mlx.serving.answers import Receipt

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say:"}]


@pytest.fixture
def client(open_client):
    return open_client(vocabulary=CHATTY)


def asked(client, messages=TALK, **fields) -> dict:
    response = client.post(CHAT, {"messages": messages, "seed": 0} | fields)
    assert response.status_code == 200, response.text
    chat.ChatAnswer.model_validate(response.json())
    return response.json()


def test_an_answer_has_openais_shape(client):
    answer = asked(client, max_tokens=7, n=2)
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": i,
            "message": {"role": "assistant", "content": text_of(7, seed=i), "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
            "slides": 0,
        }
        for i in range(2)
    ]
    prompt = template.encode(ENCODING, template.render(template.OURS, TALK))
    assert answer["usage"]["prompt_tokens"] == len(prompt) and answer["usage"]["completion_tokens"] == 14
    told = client.completion(prompt=prompt, max_tokens=7)
    assert told["choices"][0]["text"] == answer["choices"][0]["message"]["content"]
    assert told["usage"]["prompt_tokens"] == len(prompt)


def test_a_stream_begins_with_the_role_and_joins_to_the_answer(client):
    fields = {"max_tokens": 30, "n": 2, "stop": "naïve", "logprobs": True, "top_logprobs": 2}
    whole = asked(client, **fields)
    *events, last = client.events(CHAT, {"messages": TALK, "stream_options": {"include_usage": True}} | fields)
    for event in (*events, last):
        chat.ChatEvent.model_validate(event)
    assert all(event["object"] == "chat.completion.chunk" and event["usage"] is None for event in events)
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]]
        assert [part["delta"].get("role") for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
        assert "".join(part["delta"]["content"] for part in parts) == choice["message"]["content"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
        told = [token for part in parts for token in part["logprobs"]["content"]]
        assert told == choice["logprobs"]["content"]


def test_log_probabilities_have_chats_shape(client):
    tokens = asked(client, max_tokens=3, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in tokens] == [ENCODING.decode([id]) for id in SCRIPT[:3]]
    for token in tokens:
        assert bytes(token["bytes"]).decode() == token["token"] and token["logprob"] == -0.5
        assert len(token["top_logprobs"]) == 2
    assert asked(client, max_tokens=3, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize(
    "fields, param, message",
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "'system', 'user' or 'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "of type text"),
        ({"messages": [{"role": "user", "content": "a<|endoftext|>"}]}, "messages", "message 0 holds <|endoftext|>"),
        ({"messages": [{"role": "user", "content": "a" * 400_001}]}, "messages", "at most 400000 are allowed"),
        ({"tools": []}, "tools", "tools is not a field of this request; allowed: "),
        ({"audio": {}}, "audio", "audio is not a field of this request"),
        ({"prompt": "a"}, "prompt", "prompt is not a field of this request"),
        ({"top_logprobs": 1}, None, "top_logprobs is given, but logprobs is not true"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs", "less than or equal to 5"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, None, "max_tokens and max_completion_tokens differ"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "greater than or equal to 0"),
        ({"n": 64, "logprobs": True, "top_logprobs": 5, "max_tokens": 4096}, "logprobs", "numbers in the answer"),
    ],
)
def test_what_is_not_allowed_is_named(client, fields, param, message):
    error = check_error(client.post(CHAT, {"messages": TALK} | fields), 400, param)
    assert message in error["message"]


def test_a_model_without_a_template_says_so(open_client):
    error = check_error(open_client().post(CHAT, {"messages": TALK}), 400, "messages")
    assert error["code"] == "no_chat_template" and "/v1/completions" in error["message"]


def test_both_names_of_the_limit_and_parts_of_text(client):
    for name in ("max_tokens", "max_completion_tokens"):
        assert asked(client, **{name: 3})["usage"]["completion_tokens"] == 3
    in_parts = [{"role": "user", "content": [{"type": "text", "text": "Sa"}, {"type": "text", "text": "y:"}]}]
    plain = [{"role": "user", "content": "Say:"}]
    assert asked(client, in_parts)["usage"] == asked(client, plain)["usage"]


def test_the_openai_package_chats(client):
    with serving(client) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as remote:
        create = remote.chat.completions.create
        fields = {"model": "gpt2", "seed": 0, "max_completion_tokens": 12, "logprobs": True, "top_logprobs": 1}
        answer = create(messages=TALK, **fields)
        message = answer.choices[0].message
        assert message.content == text_of(12) and message.role == "assistant"
        assert len(answer.choices[0].logprobs.content) == 12
        chunks = list(create(messages=TALK, stream=True, stream_options={"include_usage": True}, **fields))
        assert "".join(c.choices[0].delta.content for c in chunks[:-1]) == message.content
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].usage.completion_tokens == 12
        again = create(messages=[*TALK, message, {"role": "user", "content": "More."}], **fields)  # as its users do
        assert again.usage.prompt_tokens > answer.usage.prompt_tokens
        with pytest.raises(openai.BadRequestError, match="tools is not a field"):
            create(messages=TALK, tools=[{"type": "function", "function": {"name": "a"}}], model="gpt2")


def test_a_receipt_of_a_chat_draws_it_again(tmp_path, small):
    """The prompt of a replay is that of the answer; the fake engine's service makes no receipts of real weights."""
    checkpoint.save(tmp_path / "model", GPT2(small))
    request = {"messages": TALK, "seed": 3, "max_tokens": 4}
    read = receipts.parse(chat.ChatRequest, json.dumps(request).encode(), 257)
    dumped = read.model_dump(by_alias=True, exclude_unset=True, exclude=receipts.WITHOUT)
    versions = receipts.versions(receipts.LoadConfig(device="cpu"))
    own = tokenizer.Vocabulary(tokenizer.of_merges([]).merges, template.OURS)
    model = GPT2(type(small)(block_size=64, vocab_size=257, n_layer=1, n_head=1, n_embd=8))
    texts = [{"tokens": [], "finish_reason": "stop", "sha256": ""}]
    facts = {"request": dumped, "checkpoint": "model", "sha256": "", "versions": versions.model_dump(), "texts": texts}
    receipt = Receipt.model_validate({"route": CHAT, **facts})
    drawn = []
    for _ in range(2):
        answered = receipts.answered(receipt, own, tmp_path, 64)
        assert answered.prompts[0].ids == template.encode(own.encoding, template.render(template.OURS, TALK))
        [(job, choice)] = answered.choices(own.encoding)
        drawn.append(replay.draw(Engine(model, 1, encoding=own.encoding), job, choice))
    assert receipts.difference(drawn[:1], drawn[1:]) is None
    with pytest.raises(ValueError, match="the receipt's request cannot be run: the model has no chat template"):
        receipts.answered(receipt, tokenizer.of_merges([]), tmp_path, 64)


def test_completions_keep_endoftext_as_text(client):
    """Only a template makes the token of it."""
    answer = client.post(COMPLETIONS, {"prompt": "<|endoftext|>", "max_tokens": 1}).json()
    assert answer["usage"]["prompt_tokens"] > 1
