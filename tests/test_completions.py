"""Both forms of an answer, streamed and whole."""

import pytest
from client import COMPLETIONS, SENTENCE, check_error, text_of
from fake_engine import ENCODING, SCRIPT, FakeEngine
from patience import eventually

SCRIPT_TEXT = ENCODING.decode(SCRIPT)
NO_DRAFTS = {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}


# /complete-sentence


def test_a_sentence_begins_with_its_prompt(client):
    answer = client.sentence("Say:", max_tokens=7)
    assert answer["completed_sentence"] == "Say:" + text_of(7)
    assert answer["finish_reason"] == "length"
    details = {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": NO_DRAFTS}
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9} | details
    assert "completed_sentences" not in answer and "logprobs" not in answer


def test_an_empty_text_is_completed_too(client):
    assert client.sentence("", max_tokens=7)["completed_sentence"] == text_of(7)


def test_samples_have_seeds_of_their_own(client):
    answer = client.sentence(n=3, max_tokens=7)
    assert answer["completed_sentences"] == ["Say:" + text_of(7, seed) for seed in range(3)]
    assert answer["completed_sentence"] == answer["completed_sentences"][0]


def test_without_a_seed_texts_differ(client):
    texts = {client.sentence(max_tokens=3, seed=None)["completed_sentence"] for _ in range(20)}
    assert len(texts) > 1


def test_whole_sentence_ends_at_the_first_end(client):
    answer = client.sentence(whole_sentence=True, max_tokens=60)
    assert answer["completed_sentence"] == "Say:" + SCRIPT_TEXT[: SCRIPT_TEXT.index("?") + 1]
    assert answer["finish_reason"] == "stop"
    second = SCRIPT.index(ENCODING.encode_ordinary("?")[0]) + 1
    answer = client.sentence(whole_sentence=True, max_tokens=60, seed=second)
    assert answer["completed_sentence"] == "Say: It costs 3.14 ducats."


@pytest.mark.parametrize("stop", ["naïve", "ï", "t: “", ["zzz", "?"], "🙂", " "])
def test_stop_strings_are_found_across_tokens_and_kept_out(client, stop):
    answer = client.sentence(stop=stop, max_tokens=40)
    first = stop if isinstance(stop, str) else "?"
    assert answer["completed_sentence"] == "Say:" + SCRIPT_TEXT[: SCRIPT_TEXT.index(first)]
    assert answer["finish_reason"] == "stop"
    eventually(lambda: client.engine.n_running == 0)


def test_a_streamed_sentence_equals_the_unstreamed(client):
    for fields in ({"max_tokens": 45, "n": 3}, {"stop": "naïve"}, {"whole_sentence": True, "max_tokens": 60}):
        *pieces, last = client.events(SENTENCE, {"text": "Say:"} | fields)
        assert last == client.sentence(**fields)
        for index in range(fields.get("n", 1)):
            text = "Say:" + "".join(piece["text"] for piece in pieces if piece["index"] == index)
            assert text == last.get("completed_sentences", [last["completed_sentence"]])[index]
            assert [p["finish_reason"] for p in pieces if p["index"] == index and "finish_reason" in p]


def test_log_probabilities_of_a_sentence(client):
    logprobs = client.sentence(max_tokens=3, logprobs=2)["logprobs"]
    assert logprobs["tokens"] == [ENCODING.decode([id]) for id in SCRIPT[:3]]
    assert logprobs["token_logprobs"] == [-0.5] * 3
    assert [len(top) for top in logprobs["top_logprobs"]] == [2] * 3
    assert logprobs["text_offset"] == [0, len(text_of(1)), len(text_of(2))]


def test_a_streamed_sentence_tells_each_tokens_log_probability(client):
    fields = {"max_tokens": 20, "n": 2, "logprobs": 2}
    *pieces, last = client.events(SENTENCE, {"text": "Say:"} | fields)
    tokens = [token for piece in pieces if piece["index"] == 0 for token in piece["logprobs"]["tokens"]]
    assert len(tokens) == 20 and tokens == last["logprobs"]["tokens"]
    assert all("logprobs" not in piece for piece in client.events(SENTENCE, {"text": "Say:"})[:-1])


def test_a_request_may_name_a_checkpoint(client):
    assert client.sentence(max_tokens=2)["checkpoint"] == "step-00000001"
    assert client.sentence(max_tokens=2, checkpoint="step-00000002")["checkpoint"] == "step-00000002"
    assert client.completion(max_tokens=2, checkpoint="step-00000002")["system_fingerprint"] == "step-00000002"
    for name in ("step-3", "../verse", "", "x" * 200):
        error = check_error(client.post(SENTENCE, {"text": "a", "checkpoint": name}), 400, "checkpoint")
        assert "allowed: step-00000001, step-00000002" in error["message"]


# /v1/completions


def test_a_completion_has_openais_shape(client):
    answer = client.completion(model="whatever", user="me")
    assert answer["object"] == "text_completion" and answer["model"] == "verse"
    assert answer["id"].startswith("cmpl-") and isinstance(answer["created"], int)
    details = {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": NO_DRAFTS}
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 16, "total_tokens": 18} | details
    (choice,) = answer["choices"]
    expected = {"index": 0, "text": text_of(16), "logprobs": None, "finish_reason": "length", "slides": 0}
    assert choice == expected


def test_several_prompts_and_samples(client):
    ids = ENCODING.encode_ordinary("Say:")
    for prompt in (["Say:", "Say:"], [ids, ids]):
        choices = client.completion(prompt=prompt, n=2, max_tokens=4)["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        assert [choice["text"] for choice in choices] == [text_of(4, seed) for seed in (0, 1, 0, 1)]
    assert client.completion(prompt=ids, echo=True, max_tokens=1)["choices"][0]["text"] == "Say:" + text_of(1)


def test_echo_with_log_probabilities_and_nothing_drawn(client):
    text = "A naïve 🎭 indeed"
    ids = ENCODING.encode_ordinary(text)
    answer = client.completion(prompt=text, echo=True, logprobs=1, max_tokens=0)
    choice = answer["choices"][0]
    assert choice["text"] == text and choice["finish_reason"] == "length"
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == [None] + [-0.5] * (len(ids) - 1)
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [len(ENCODING.decode(ids[:i]).rstrip("\ufffd")) for i in range(len(ids))]
    assert [name for name in logprobs["tokens"] if name.startswith("bytes:\\x")]  # the mask is several tokens
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_each_sample_echoes_its_prompts_log_probabilities_whichever_comes_first(client, max_tokens):
    """A sample that copies what is read for another request is drawn before the one that brings the numbers."""
    body = {"prompt": ["A naïve", "Say:"], "echo": True, "logprobs": 1, "n": 3, "max_tokens": max_tokens}
    expected = client.completion(**body)["choices"]
    client.fake.in_reverse = True
    assert client.completion(**body)["choices"] == expected
    assert all(len(choice["logprobs"]["tokens"]) > max_tokens for choice in expected)


def test_a_sample_that_waited_for_its_prompts_numbers_ends_at_its_stop_string(client):
    """It was drawn up to max_tokens meanwhile: what came after the stop string is none of its text."""
    body = {"prompt": "Say:", "echo": True, "logprobs": 0, "n": 2, "max_tokens": 30, "stop": "or not"}
    expected = client.completion(**body)
    client.fake.in_reverse, client.fake.n_slots = True, 1
    answer = client.completion(**body)
    assert answer["choices"] == expected["choices"] and answer["usage"] == expected["usage"]
    events = client.events(COMPLETIONS, body)
    ends = [choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(ends) == [0, 1]


def test_tokens_that_the_context_does_not_hold_have_no_log_probability(client):
    ids = [1] * 100  # the small engine's context has 64
    logprobs = client.completion(prompt=ids, echo=True, logprobs=0, max_tokens=1)["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == 101
    assert logprobs["token_logprobs"] == [None] * 37 + [-0.5] * 64


def test_log_probabilities_end_where_the_text_does(client):
    choice = client.completion(stop="or not", logprobs=0, max_tokens=30)["choices"][0]
    assert "".join(choice["logprobs"]["tokens"]).startswith(choice["text"])
    assert all(offset < len(choice["text"]) for offset in choice["logprobs"]["text_offset"])


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 45, "n": 3},
        {"prompt": ["Say:", "Sing"], "echo": True, "logprobs": 2, "max_tokens": 30},
        {"stop": ["naïve", "zz"], "logprobs": 1, "max_tokens": 30},
        {"max_tokens": 0, "echo": True, "logprobs": 0},
    ],
)
def test_a_streamed_completion_equals_the_unstreamed(client, fields):
    body = {"prompt": "Say:", "stream_options": {"include_usage": True}} | fields
    *chunks, last = client.events(COMPLETIONS, body)
    whole = client.completion(**fields)
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None and chunk["id"] == last["id"] for chunk in chunks)
    for choice in whole["choices"]:
        pieces = [piece for chunk in chunks for piece in chunk["choices"] if piece["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [p["finish_reason"] for p in pieces] == [None] * (len(pieces) - 1) + [choice["finish_reason"]]
        if choice["logprobs"]:
            for name, values in choice["logprobs"].items():
                assert [value for piece in pieces for value in piece["logprobs"][name]] == values


def test_what_was_cached_of_each_prompt_counts_once(client):
    client.fake.found = 128
    try:
        for n in (1, 3):
            whole = client.completion(prompt=["Say:", "Sing"], n=n, max_tokens=2)
            assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 256}
        *_, last = client.events(SENTENCE, {"text": "Say:", "n": 2})
        assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 128}
    finally:
        client.fake.found = 0


def test_a_stream_without_usage_has_none(client):
    assert all("usage" not in chunk for chunk in client.events(COMPLETIONS, {"prompt": "Say:"}))


def test_the_end_of_a_text_has_its_log_probability(open_client):
    """As OpenAI tells it: who asks for one token with the prompt's numbers gets one token's more."""
    fake = FakeEngine()
    fake.ends_at = 2
    client = open_client(fake)
    choice = client.completion(echo=True, logprobs=0, max_tokens=9)["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["text"] == "Say:" + text_of(2)
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["Say", ":", *(ENCODING.decode([id]) for id in SCRIPT[:2]), "<|endoftext|>"]
    assert logprobs["token_logprobs"][-1] == -0.5 and logprobs["text_offset"][-1] == len(choice["text"])
    assert client.completion(max_tokens=9)["choices"][0]["logprobs"] is None
