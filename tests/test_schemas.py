import json

import pytest

from gpt2_mlx.generation.params import Constraint
from gpt2_mlx.serving import limits
from gpt2_mlx.serving.errors import ApiError
from gpt2_mlx.serving.parsing import parse
from gpt2_mlx.serving.schemas import CompletionRequest, SentenceRequest

SENTENCE = {"text": "To be"}
COMPLETION = {"prompt": "To be"}


def sentence(**fields) -> SentenceRequest:
    return parse(SentenceRequest, json.dumps(SENTENCE | fields).encode())


def completion(**fields) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps(COMPLETION | fields).encode())


def schema_of(**fields) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": {"type": "object"}} | fields}


SHARED_MISTAKES = [
    ("max_tokens", [-1, "5", 5.0, True, 10**30, [], limits.MAX_TOKENS + 1]),
    ("temperature", [-0.1, 2.1, "1", float("nan"), float("inf"), True]),
    ("top_p", [-0.1, 1.1, "1"]),
    ("top_k", [-1, 1.5, 2**31]),
    ("min_p", [-0.1, 1.1]),
    ("repetition_penalty", [0, -1, 101]),
    ("n", [0, -1, limits.MAX_N + 1, 1.0, "1"]),
    ("seed", [-1, 2**63, 0.5, "1"]),
    ("stop", [5, [5], "", [""], ["a"] * 5, "x" * 257, {}]),
    ("stream", ["true", 1, 0]),
    ("response_format", ["json", [], {"type": "json_schema"}, {"type": "text", "json_schema": {"name": "a"}}]),
    ("response_format.type", [{}, {"type": "xml"}, {"type": "structural_tag"}, {"type": 1}]),
    ("response_format.schema", [{"type": "json_object", "schema": {}}]),
    ("response_format.json_schema.name", [schema_of(name="a b"), schema_of(name="x" * 65), schema_of(name=None)]),
    ("response_format.json_schema.schema", [schema_of(schema=5), schema_of(schema="{}"), schema_of(schema=[])]),
    ("response_format", [schema_of(schema={"title": "x" * limits.MAX_CONSTRAINT_CHARS})]),
    ("response_format.json_schema.strict", [schema_of(strict="yes")]),
    ("response_format.json_schema.more", [schema_of(more=1)]),
    ("structured_outputs", ["x", {}, {"json_object": False}, {"regex": "a", "choice": ["a"]}, {"json": "{"}]),
    ("structured_outputs", [{"json": "[1]"}, {"json": "[" * 2000}, {"json": '{"a":' * 2000 + "1" + "}" * 2000}]),
    ("structured_outputs", [{"json": {"title": "x" * limits.MAX_CONSTRAINT_CHARS}}]),
    ("structured_outputs.json_object", [{"json_object": 1}]),
    ("structured_outputs.regex", [{"regex": 5}, {"regex": "x" * (limits.MAX_CONSTRAINT_CHARS + 1)}]),
    ("structured_outputs.choice", [{"choice": []}, {"choice": "ab"}, {"choice": ["a"] * (limits.MAX_CHOICES + 1)}]),
    ("structured_outputs.choice.1", [{"choice": ["a", 1]}, {"choice": ["a", ""]}]),
    ("structured_outputs.grammar", [{"grammar": ["a"]}]),
    ("structured_outputs.structural_tag", [{"structural_tag": "x"}]),
    ("structured_outputs.whitespace_pattern", [{"regex": "a", "whitespace_pattern": " "}]),
    ("logprobs", [-1, 6, True, "1"]),
    ("best", [1, None]),
    ("", [1]),
]
SENTENCE_MISTAKES = [
    ("text", [None, 5, ["a"], "x" * (limits.MAX_PROMPT_CHARS + 1)]),
    ("whole_sentence", ["yes", 1]),
    ("prompt", ["a"]),
    ("echo", [True]),
]
COMPLETION_MISTAKES = [
    ("prompt", [None, 5, [], [[]], [[1], []], ["a", 1], [1, True], [1.0], [-1], [50257], [[50257]], ["a"] * 65]),
    ("prompt", ["x" * (limits.MAX_PROMPT_CHARS + 1)]),
    ("text", ["a"]),
    ("echo", ["true", 1]),
    ("suffix", ["x", ""]),
    ("best_of", [2, 0, "1"]),
    ("presence_penalty", [-2.1, 2.1, "0"]),
    ("frequency_penalty", [-2.1, 2.1]),
    ("logit_bias", [{"a": 1}, {"50257": 1}, {"-1": 1}, {"5": 101}, {"5": "1"}, {"5": True}, [], {"9" * 5000: 1}]),
    ("logit_bias", [{str(i): 1 for i in range(301)}, {"²": 1}, {"5": 1, "05": 2}, {"5\n": 1}]),
    ("stream_options", [True, []]),
    ("stream_options.include_usage", [{"include_usage": 1}]),
    ("stream_options.more", [{"more": True}]),
    ("model", [5]),
    ("user", [5, "x" * 513]),
    ("metadata", [[], "x", {f"{i}": "" for i in range(17)}]),
    ("metadata.a", [{"a": 1}, {"a": None}, {"a": "x" * 513}]),
    ("store", ["yes", 1]),
    ("service_tier", [1, "x" * 513]),
    ("safety_identifier", [1]),
    ("prompt_cache_key", [1]),
    ("prompt_cache_retention", [24]),
    ("stream_options.include_obfuscation", [{"include_obfuscation": "no"}]),
]


def each(mistakes):
    return [(name, value) for name, values in mistakes for value in values]


def check_mistake(parse, name, value):
    with pytest.raises(ApiError) as caught:
        parse(**{name.split(".")[0]: value})
    assert (caught.value.status, caught.value.param) == (400, name)
    assert name in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(("name", "value"), each(SHARED_MISTAKES + SENTENCE_MISTAKES))
def test_a_bad_field_of_a_sentence_is_named(name, value):
    check_mistake(sentence, name, value)


@pytest.mark.parametrize(("name", "value"), each(SHARED_MISTAKES + COMPLETION_MISTAKES))
def test_a_bad_field_of_a_completion_is_named(name, value):
    check_mistake(completion, name, value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 3}, "temperature is 3; it must be less than or equal to 2"),
        ({"max_tokens": "5"}, "max_tokens is '5'; it must be a valid integer"),
        ({"stop": 5}, "stop is 5; it must be a string or a list of strings"),
        ({"suffix": "x"}, "suffix is 'x'; it must be null"),
        ({"best_of": 2}, "best_of is 2; it must be 1"),
        ({"top": 1}, "top is not a field of this request; allowed: "),
        ({"prompt": None}, "prompt is missing"),
    ],
)
def test_the_message_shows_the_value_and_what_is_allowed(fields, message):
    with pytest.raises(ApiError) as caught:
        completion(**fields)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"text": "a"} {}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"text":' * 100_000,
        b'{"text": "a", "n": ' + b"9" * 100_000 + b"}",
        b"{'text': 'a'}",
        b"\xef\xbb\xbf{}",
        b"\x00",
    ],
)
def test_what_is_no_json_object_is_refused(body):
    for model in (SentenceRequest, CompletionRequest):
        with pytest.raises(ApiError) as caught:
            parse(model, body)
        assert caught.value.status == 400 and len(str(caught.value)) < 500


def test_a_deeply_nested_value_is_refused_like_any_other():
    nested = b"[" * 150 + b"]" * 150
    for name in ("stop", "prompt", "seed", "logit_bias"):
        with pytest.raises(ApiError) as caught:
            parse(CompletionRequest, b'{"prompt": "a", "%s": %s}' % (name.encode(), nested))
        assert caught.value.param == name


def test_defaults():
    params = sentence().params(seed=3)
    assert (params.max_tokens, params.temperature, params.top_k, params.top_p) == (50, 0.8, 50, 1)
    assert (params.seed, params.logprobs, params.prompt_logprobs) == (3, None, False)
    params = completion().params(seed=3)
    assert (params.max_tokens, params.temperature, params.top_k, params.top_p) == (16, 1, 0, 1)
    assert (params.seed, params.logprobs, params.prompt_logprobs) == (3, None, False)


def test_null_is_the_default():
    names = set(CompletionRequest.model_fields) - {"prompt"}
    assert completion(**dict.fromkeys(names)) == completion()
    names = set(SentenceRequest.model_fields) - {"text"}
    assert sentence(**dict.fromkeys(names)) == sentence()


def test_what_openais_clients_send_for_openai_changes_nothing():
    sent = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "x"}
    sent |= {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "suffix": None, "best_of": 1}
    request = completion(**sent, stream_options={"include_obfuscation": True, "include_usage": None})
    assert request.params(0) == completion().params(0)
    assert request.stream_options.include_usage is False


ANY = Constraint("json_schema", '{"type": "object"}')
PERSON = {"type": "object", "properties": {"zeal": {"const": None}, "age": {"type": "integer"}}}


@pytest.mark.parametrize("parse", [sentence, completion])
@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        ({"response_format": {"type": "text"}}, None, None),
        ({"response_format": {"type": "json_object"}}, "response_format.type", ANY),
        (
            {"response_format": schema_of(schema=PERSON, strict=True, description="a person")},
            "response_format.json_schema.schema",
            Constraint("json_schema", json.dumps(PERSON)),
        ),
        ({"response_format": schema_of(schema=None)}, "response_format.json_schema.schema", ANY),
        ({"structured_outputs": {"json_object": True, "regex": None}}, "structured_outputs.json_object", ANY),
        (
            {"structured_outputs": {"json": json.dumps(PERSON)}},
            "structured_outputs.json",
            Constraint("json_schema", json.dumps(PERSON)),
        ),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex", Constraint("regex", "a+")),
        (
            {"structured_outputs": {"choice": ["a", "b"]}, "response_format": {"type": "text"}},
            "structured_outputs.choice",
            Constraint("choice", '["a", "b"]'),
        ),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", Constraint("grammar", "x")),
    ],
)
def test_what_the_text_must_be(parse, fields, name, expected):
    request = parse(**fields)
    assert request.constraint == (expected and (name, expected))
    assert request.params(0).constraint == expected


def test_two_fields_may_not_both_say_what_the_text_must_be():
    with pytest.raises(ApiError) as caught:
        completion(response_format={"type": "json_object"}, structured_outputs={"regex": "a"})
    assert caught.value.param == "structured_outputs"


# What would change the text and is not offered, as OpenAI, vLLM and llama.cpp call it.
FOREIGN = [
    *("messages", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "reasoning_effort"),
    *("max_completion_tokens", "modalities", "prediction", "verbosity", "web_search_options", "top_logprobs"),
    *("min_tokens", "stop_token_ids", "bad_words", "ignore_eos", "use_beam_search", "length_penalty"),
    *("include_stop_str_in_output", "skip_special_tokens", "truncate_prompt_tokens", "prompt_logprobs", "cache_salt"),
    *("allowed_token_ids", "logits_processors", "return_token_ids", "structural_tag", "repeat_penalty", "n_predict"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
    *("guided_whitespace_pattern", "guided_json_object", "grammar", "json_schema", "regex", "choice", "json", "ebnf"),
    *("grammar_lazy", "grammar_triggers", "text_format", "format", "response_schema"),
    *("typical_p", "mirostat", "dynatemp_range", "dry_multiplier", "xtc_probability", "samplers", "cache_prompt"),
]


@pytest.mark.parametrize("parse", [sentence, completion])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_others_offer_and_we_do_not_is_refused_by_name(parse, name):
    check_mistake(parse, name, 1)
    check_mistake(parse, name, None)


@pytest.mark.parametrize("prompt", ["", "a", ["a", "b"], [1, 2], [[1], [2, 50256]]])
def test_every_kind_of_prompt(prompt):
    is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
    assert completion(prompt=prompt).prompts == ((prompt,) if is_one else tuple(prompt))


def test_the_limits_themselves_are_allowed():
    at_most = {"max_tokens": limits.MAX_TOKENS, "temperature": 2, "top_k": limits.MAX_TOP_K, "top_p": 1, "min_p": 1}
    at_most |= {"repetition_penalty": 100, "presence_penalty": 2, "frequency_penalty": 2, "logprobs": 5}
    at_most |= {"seed": 2**63 - 1, "logit_bias": {"0": -100, "50256": 100.0}, "stop": ["x" * 256] * 4}
    request = completion(**at_most, n=64, prompt=["a", "b"])
    assert request.params(2**63).seed == 0
    assert request.params(0).logit_bias == {0: -100, 50256: 100}
    at_least = {"max_tokens": 0, "temperature": 0, "top_k": 0, "top_p": 0, "min_p": 0, "repetition_penalty": 0.01}
    completion(**at_least, presence_penalty=-2, frequency_penalty=-2).params(0)


def test_prompts_times_n_is_limited():
    with pytest.raises(ApiError) as caught:
        completion(prompt=["a", "b", "c"], n=64)
    assert caught.value.param == "n"


def test_prompt_logprobs_follow_from_echo_and_logprobs():
    assert completion(echo=True, logprobs=0).params(0).prompt_logprobs
    assert not completion(echo=True).params(0).prompt_logprobs
    assert not completion(logprobs=0).params(0).prompt_logprobs
    assert completion(logprobs=0).params(0).logprobs == 0
    assert sentence(logprobs=0).params(0).logprobs is None


@pytest.mark.parametrize("n_vocab", [257, 1024, 50257])
@pytest.mark.parametrize("field", [lambda id: {"prompt": [id]}, lambda id: {"prompt": "a", "logit_bias": {str(id): 1}}])
def test_token_ids_end_with_the_served_vocabulary(n_vocab, field):
    parse(CompletionRequest, json.dumps(field(n_vocab - 1)).encode(), n_vocab)
    with pytest.raises(ApiError, match=f"at most {n_vocab - 1}"):
        parse(CompletionRequest, json.dumps(field(n_vocab)).encode(), n_vocab)
