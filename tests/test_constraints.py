"""Texts that must be JSON of a schema, match a pattern, be one of some strings or follow a grammar."""

import json
import re
import threading
from types import SimpleNamespace

import jsonschema
import llguidance
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import far_from_uniform
from patience import PATIENCE
from test_engine import run, tokens_of

from gpt2_mlx import tokenizer
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation import constraints, sampling, text
from gpt2_mlx.generation.constraints import Matchers, examine
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.params import Constraint, SamplingParams
from gpt2_mlx.generation.rows import Row
from gpt2_mlx.generation.scheduler import Sequence
from gpt2_mlx.model import GPT2

ENCODING = tokenizer.load()
EOT = ENCODING.eot_token
V = 50304  # padded: no token has the last ids
MATCHERS = Matchers(ENCODING, V)
BYTES = {ENCODING.decode_single_token_bytes(id): id for id in range(EOT)}


def closed(**properties) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS = [
    closed(name={"type": "string", "maxLength": 12}, age={"type": "integer", "minimum": 0, "maximum": 130}),
    closed(mood={"enum": ["glad", "sad", None, 3]}, sure={"type": "boolean"}),
    {"type": "array", "items": {"type": "integer", "minimum": -7, "maximum": 400}, "minItems": 1, "maxItems": 3},
    closed(id={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"}, tags={"type": "array", "maxItems": 0}),
    {"anyOf": [{"type": "null"}, closed(at={"type": "string", "format": "date"})]},
    {
        "$defs": {"leaf": {"type": "string", "maxLength": 3}},
        **closed(left={"$ref": "#/$defs/leaf"}, kind={"const": "x"}),
    },
]
PATTERNS = ["[0-9]{3}-[0-9]{4}", r"(red|green|blue)( light)?", r"[A-Z][a-z]{2,5}\.", "é+🎭{1,2}|\\n{2}", "(ab|ba){3,9}"]
WAYS = [{"top_k": 0}, {"top_k": 5}, {"top_k": 0, "top_p": 0.9}, {"temperature": 0}, {"min_p": 0.2, "temperature": 1.5}]


@pytest.fixture(scope="module")
def model() -> GPT2:
    return far_from_uniform(GPT2Config(block_size=32, vocab_size=V, n_layer=1, n_head=1, n_embd=16))


def json_of(schema: dict) -> Constraint:
    return Constraint("json_schema", json.dumps(schema))


def choice(*strings: str) -> Constraint:
    return Constraint("choice", json.dumps(strings))


def drawn(model: GPT2, asked: list[SamplingParams], n_slots: int = 8, prompt: str = "Say: ") -> list[tuple[str, str]]:
    """The text and the finish reason of each, all in one engine."""
    engine, prompt = Engine(model, n_slots, encoding=ENCODING), ENCODING.encode_ordinary(prompt)
    ids = [engine.add(prompt, params) for params in asked]
    outputs = run(engine, *ids)
    return [(ENCODING.decode(tokens_of(outputs[id])), outputs[id][-1].finish_reason) for id in ids]


def samples(constraint: Constraint, n: int, max_tokens: int = 250) -> list[SamplingParams]:
    """Drawn in every way, each with a seed of its own."""
    ways = [WAYS[i % len(WAYS)] for i in range(n)]
    return [
        SamplingParams(constraint=constraint, max_tokens=max_tokens, seed=i, **{"temperature": 1.0} | way)
        for i, way in enumerate(ways)
    ]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_answer_is_json_of_the_schema(model, schema):
    for told, reason in drawn(model, samples(json_of(schema), 10)):
        assert reason == "stop"
        jsonschema.validate(json.loads(told), schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_answer_matches_the_pattern(model, pattern):
    for told, reason in drawn(model, samples(Constraint("regex", pattern), 10)):
        assert reason == "stop" and re.fullmatch(pattern, told)


def test_every_answer_is_one_of_the_strings(model):
    strings = ("a", "ab", "Yes, indeed", "naïve 🎭", '"\\\n')
    told = drawn(model, samples(choice(*strings), 40))
    assert {reason for _, reason in told} == {"stop"} and {told for told, _ in told} <= set(strings)
    assert len(set(told)) > 2


@pytest.mark.parametrize("grammar", ['root ::= "(" root ")" | [0-9]', 'start: "(" start ")" | /[0-9]/'])
def test_every_answer_follows_the_grammar(model, grammar):
    for told, reason in drawn(model, samples(Constraint("grammar", grammar), 10, max_tokens=60)):
        depth = told.count("(")
        assert reason == "length" or re.fullmatch(rf"\({{{depth}}}[0-9]\){{{depth}}}", told)


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5), st.integers(0, 2**31))
@settings(max_examples=30)
def test_what_is_allowed_is_what_brute_force_finds(strings, seed):
    strings = [string.encode(errors="replace").decode() for string in strings]
    matcher, random, so_far = MATCHERS.make(choice(*strings)), np.random.default_rng(seed), b""
    whole = {string.encode() for string in strings}
    while not matcher.is_complete:
        found = set(np.flatnonzero(matcher.allowed()).tolist())
        rests = [string[len(so_far) :] for string in whole if string.startswith(so_far)]
        expected = {BYTES[rest[:i]] for rest in rests for i in range(1, len(rest) + 1) if rest[:i] in BYTES}
        assert EOT in found if so_far in whole else EOT not in found
        if so_far in whole or len({rest[0] for rest in rests}) > 1:
            assert found - {EOT} == expected
        else:  # where the next bytes are certain, they are spelt as the tokenizer spells them
            assert found and found <= expected
        if found <= {EOT}:
            return
        token = int(random.choice(sorted(found - {EOT})))
        so_far += ENCODING.decode_single_token_bytes(token)
        matcher.add(token)
    assert so_far in whole


def test_a_crowd_changes_no_bit_with_or_without_a_constraint(model):
    def told(asked: list, n_slots: int) -> list:
        engine = Engine(model, n_slots, encoding=ENCODING)
        ids = [engine.add([1, 2, i], params) for i, params in asked]
        outputs = run(engine, *ids)
        return [[token for output in outputs[id] for token in output.tokens] for id in ids]

    bound = [Constraint("regex", "[0-9a-z ]{30}"), json_of(SCHEMAS[0]), choice("no", "yes"), None]
    asked = [
        (i, SamplingParams(constraint=bound[i % 4], max_tokens=12, seed=i, logprobs=3, **WAYS[i % len(WAYS)]))
        for i in range(15)
    ]
    free = [each for each in asked if not each[1].constraint]
    alone = [told([each], 1)[0] for each in asked]
    assert told(asked, 8) == told(asked, 32) == alone
    assert told(free, 8) == [tokens for each, tokens in zip(asked, alone) if each in free]


def test_the_mask_comes_before_the_rest(model):
    constraint = Constraint("regex", "[0-9]{4}")
    greedy = SamplingParams(constraint=constraint, temperature=0)
    (expected, _) = drawn(model, [greedy])[0]
    for way in ({"top_k": 1}, {"top_p": 0.0, "top_k": 0}, {"min_p": 1.0}):
        params = SamplingParams(constraint=constraint, temperature=1.0, seed=3, **way)
        assert drawn(model, [params]) == [(expected, "stop")]


def test_penalties_and_biases_choose_among_what_is_allowed(model):
    yes, no = (ENCODING.encode_ordinary(word)[0] for word in ("yes", "no"))
    for bias, expected in (({yes: 100.0, 5: 100.0}, "yes"), ({yes: -100.0, 5: 100.0, EOT: 100.0}, "no")):
        params = SamplingParams(constraint=choice("yes", "no"), logit_bias=bias, top_k=0)
        assert drawn(model, [params]) == [(expected, "stop")]
    twice = {"constraint": Constraint("regex", "(yes|no){2}"), "logit_bias": {yes: 50.0, no: 50.0}}
    (plain, _), (varied, _) = drawn(
        model,
        [
            SamplingParams(temperature=0, **twice),
            SamplingParams(temperature=0, frequency_penalty=2.0, presence_penalty=2.0, repetition_penalty=100, **twice),
        ],
    )
    assert plain in ("yesyes", "nono") and varied in ("yesno", "noyes")


def test_a_text_ends_only_where_it_may(model):
    ends = {EOT: 100.0}
    for pattern, expected in (("[0-9]{3}", "[0-9]{3}"), ("[0-9]*", ""), ("a[0-9]*", "a")):
        params = SamplingParams(constraint=Constraint("regex", pattern), logit_bias=ends, seed=1)
        (told, reason), *_ = drawn(model, [params])
        assert reason == "stop" and re.fullmatch(expected, told)


def test_a_text_that_ends_by_length_says_so(model):
    constraint = Constraint("regex", "(ab|ba){20}")
    whole, _ = drawn(model, [SamplingParams(constraint=constraint, seed=1)])[0]
    n = len(drawn_tokens(model, constraint))
    for max_tokens, reason in ((n - 1, "length"), (n, "stop"), (n + 1, "stop")):
        told, why = drawn(model, [SamplingParams(constraint=constraint, seed=1, max_tokens=max_tokens)])[0]
        assert why == reason and whole.startswith(told) and (told == whole) == (reason == "stop")


def drawn_tokens(model: GPT2, constraint: Constraint) -> list[int]:
    engine = Engine(model, 1, encoding=ENCODING)
    id = engine.add(ENCODING.encode_ordinary("Say: "), SamplingParams(constraint=constraint, seed=1))
    return tokens_of(run(engine, id)[id])


def test_past_block_size_the_constraint_goes_on(model):
    pattern = "([0-9][a-z]){60}"
    engine = Engine(model, 2, encoding=ENCODING)
    ids = [engine.add([i], SamplingParams(constraint=Constraint("regex", pattern), max_tokens=200)) for i in (1, 2)]
    outputs = run(engine, *ids)
    for id in ids:
        assert outputs[id][-1].slides > 1 and outputs[id][-1].finish_reason == "stop"
        assert re.fullmatch(pattern, ENCODING.decode(tokens_of(outputs[id])))


def test_log_probabilities_are_those_of_the_model_without_the_constraint(model):
    engine = Engine(model, 1, encoding=ENCODING)
    params = SamplingParams(constraint=Constraint("regex", "[0-9]{5}"), temperature=0, logprobs=2, max_tokens=3)
    id = engine.add([5, 6], params)
    context = [5, 6]
    for output in run(engine, id)[id]:
        logits = model(mx.array([context]))[0, -1]
        log_p = np.array(logits - mx.logsumexp(logits))
        (token,) = output.tokens
        assert token.logprob == pytest.approx(log_p[token.id], abs=1e-4)
        assert [id for id, _ in token.alternatives] == np.argsort(-log_p)[:2].tolist()
        context.append(token.id)


def test_a_pass_names_each_sequence_once(model):
    """Also while its constraint is compiled: what names it twice would count a death of the process twice."""
    passes, prompt = [], ENCODING.encode_ordinary("one two three " * 100)
    engine = Engine(model, 2, lambda ids, _: passes.append(ids), encoding=ENCODING)
    ids = [engine.add(prompt, SamplingParams(max_tokens=2, constraint=Constraint("regex", "[a-z ]{9}"))) for _ in "ab"]
    while engine.has_work:
        engine.step()
    assert all(len(named) == len(set(named)) for named in passes) and {*ids} == {id for named in passes for id in named}


@pytest.mark.parametrize("limit, ends", [(600, {149}), (300, range(80, 100))])
def test_what_other_texts_did_with_a_constraint_ends_no_text(monkeypatch, limit, ends):
    """Copies of a state share what its limit counts."""
    monkeypatch.setattr(constraints, "LIMITS", llguidance.LLParserLimits(max_lexer_states=limit))
    encoding = tokenizer.of_merges([]).encoding
    constraint = Constraint("regex", "[a-z ]{0,200}(cat|dog)[a-z ]{0,200}")

    def end_of(text: int, matchers: Matchers) -> int:
        matcher, pick = matchers.make(constraint), np.random.default_rng(text)
        for n in range(150):
            allowed = matcher.allowed()
            if matcher.error:
                return n
            allowed[encoding.eot_token] = False
            matcher.add(int(pick.choice(np.flatnonzero(allowed))))
            if n % 7 == 0:
                matcher.copy().add(int(np.flatnonzero(matcher.allowed())[-1]))  # as a draft does
        return n

    shared = Matchers(encoding, encoding.n_vocab)
    found = [end_of(text, shared) for text in range(8)]
    assert found == [end_of(text, Matchers(encoding, encoding.n_vocab)) for text in range(8)]
    assert {*found} <= {*ends}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("draw", [0.0, 1 - 2.0**-24])
def test_no_draw_takes_what_is_forbidden(way, draw):
    """Also where nearly nothing is allowed, and the smallest or the largest number is drawn."""
    logits = mx.random.normal((2, V), key=mx.random.key(0))
    for allowed in ([40_000], [0, 3], [V - 1, 100]):
        params = SamplingParams(constraint=Constraint("regex", "x"), **way)
        matcher = SimpleNamespace(allowed=lambda allowed=allowed: np.isin(np.arange(V), allowed))
        bound = Row(Sequence(0, [1], params, 8), matcher=matcher)
        free = Row(Sequence(1, [1], SamplingParams(**way), 8))
        masked = sampling.constrained(mx.array(logits), [bound, free])
        assert mx.array_equal(masked[1], logits[1])
        assert int(sampling.sample(masked, [bound, free], [draw, 0.5])[0]) in allowed


BROKEN = [
    ("regex", "ab(c", "unclosed group, at character 3 of the pattern 'ab.c'"),
    ("regex", "a(?=b)", "look-ahead.*at character 2"),
    ("regex", r"\bfoo", "lookarounds not supported"),
    ("json_schema", '{"type": "objec"}', "Invalid type: objec"),
    (
        "json_schema",
        json.dumps(closed(a={"items": {"uniqueItems": True}})),
        'keys: ."uniqueItems".*/properties/a/items',
    ),
    ("json_schema", json.dumps(closed(a={"pattern": "(x", "type": "string"})), "unclosed group.*at /properties/a"),
    ("json_schema", json.dumps({"anyOf": [{}, {"$ref": "#/nowhere"}]}), "'/nowhere' does not exist, at /anyOf/1"),
    ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum .5. is greater than maximum .3."),
    ("grammar", "root ::= item", "Rule 'item' not found"),
    ("grammar", 'root ::= ("a"', "Expected '.' at line 1"),
    ("grammar", 'start: "a" other', 'unknown name: "other", at line 1, column 8'),
    ("grammar", "root ::= " + "(" * 20_000, "recursion"),
    ("grammar", "start: start", "cannot be followed"),
]


@pytest.mark.parametrize(("kind", "content", "message"), BROKEN)
def test_what_is_wrong_is_told_in_a_line_with_its_place(kind, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        list(examine(MATCHERS, Constraint(kind, content), 5))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_constraint_that_cannot_be_followed_ends_its_text_alone(model, monkeypatch):
    monkeypatch.setattr(constraints, "LIMITS", llguidance.LLParserLimits(max_lexer_states=200))
    engine = Engine(model, 4, encoding=ENCODING)
    hard = Constraint("regex", "[a-z]{1,90}x[a-z]{90}")  # its states become too many on the way
    free = SamplingParams(max_tokens=40, seed=1)
    expected = run(alone := Engine(model, 1), alone.add([7], free))
    broken = engine.add([1], SamplingParams(constraint=Constraint("regex", "("), max_tokens=40))
    failing = engine.add([1], SamplingParams(constraint=hard, max_tokens=100))
    going = engine.add([7], free)
    outputs = run(engine, broken, failing, going)
    assert "unclosed group" in outputs[broken][-1].failure and len(outputs[broken]) == 1
    assert "cannot be followed" in outputs[failing][-1].failure and len(outputs[failing]) > 1
    assert tokens_of(outputs[going]) == tokens_of(*expected.values())
    assert engine.n_running == engine.n_waiting == 0


def test_compiling_a_constraint_is_announced_and_does_not_count_as_a_token(model):
    passes = []
    engine = Engine(model, 1, on_pass=lambda ids, n_tokens: passes.append((*ids, n_tokens)), encoding=ENCODING)
    id = engine.add([1], SamplingParams(constraint=Constraint("regex", "[0-9]{3}"), top_k=0, max_tokens=1))
    run(engine, id)
    assert passes == [(id, 0), (id, 1)]


class HeldMatchers(Matchers):
    """They are made once they are let."""

    def __init__(self):
        super().__init__(ENCODING, V)
        self.let = threading.Event()

    def make(self, constraint):
        assert self.let.wait(PATIENCE)
        return super().make(constraint)


def test_nobody_waits_for_anothers_constraint(model):
    """What it is blamed for is told before each pass meanwhile, and its text is as ever."""
    passes = []
    engine = Engine(model, 4, on_pass=lambda ids, n: passes.append((ids, n)), encoding=ENCODING)
    engine._matchers = matchers = HeldMatchers()
    params = SamplingParams(constraint=Constraint("regex", "[0-9]{9}"), max_tokens=9, seed=1)
    alone = Engine(model, 1, encoding=ENCODING)
    expected = tokens_of(run(alone, id := alone.add([7, 8], params))[id])
    bound, left = engine.add([7, 8], params), engine.add([7, 8], params)
    free = [engine.add([i, 8], SamplingParams(max_tokens=12, seed=i)) for i in (1, 2)]
    outputs = [output for _ in range(20) for output in engine.step()]
    assert {(output.id, output.finish_reason) for output in outputs if output.finish_reason} == {
        (id, "length") for id in free
    }
    assert ([*free, bound, left], 2) in passes
    engine.cancel(left)
    assert engine.step() == []
    matchers.let.set()
    assert tokens_of(run(engine, bound)[bound]) == expected
    assert not engine.has_work


def test_from_python(model):
    params = {"constraint": Constraint("regex", "[0-9]{3}"), "seed": 1}
    assert re.fullmatch("Say: [0-9]{3}", text.generate(model, ENCODING, "Say: ", **params))
    with pytest.raises(ValueError, match="unclosed"):
        text.generate(model, ENCODING, "Say: ", constraint=Constraint("regex", "("))
