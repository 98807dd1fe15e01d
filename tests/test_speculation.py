"""Speculation: drafts spare passes and change nothing, neither a text nor the last bit of a log-probability."""

import json
import random

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from gpt2_mlx import device, tokenizer
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.outputs import Output, Token
from gpt2_mlx.generation.params import Constraint, SamplingParams
from gpt2_mlx.generation.text import stream
from gpt2_mlx.kv_cache import KVCache
from gpt2_mlx.model import GPT2
from gpt2_mlx.serving.choice import EncodedPrompt, choices_of, usage_of
from gpt2_mlx.serving.parsing import parse
from gpt2_mlx.serving.schemas import CompletionRequest

VOCABULARY = tokenizer.of_merges([])
BYTES = VOCABULARY.encoding
BLOCK = 160
VERSE = "".join(f"{i}. Shall I compare thee to a summer's day {i * i}?\n" for i in range(60))
SEEN = VERSE[300:450]  # a prompt that a block of the prefix cache holds the beginning of


@pytest.fixture(scope="module")
def model() -> GPT2:
    return learnt(GPT2Config(block_size=BLOCK, vocab_size=BYTES.n_vocab, n_layer=2, n_head=2, n_embd=32))


@pytest.fixture(scope="module")
def small(model) -> GPT2:
    return learnt(GPT2Config(block_size=BLOCK - 30, vocab_size=BYTES.n_vocab, n_layer=1, n_head=1, n_embd=16))


def learnt(config: GPT2Config) -> GPT2:
    """It has learnt a little: it often repeats what it read, and often does not."""
    model = GPT2(config, seed=1)
    optimizer, tokens = optim.Adam(1e-2), np.array(BYTES.encode_ordinary(VERSE), np.int32)
    loss = nn.value_and_grad(model, lambda m, x: nn.losses.cross_entropy(m(x[:, :-1]), x[:, 1:], reduction="mean"))
    draw = np.random.default_rng(0)
    for _ in range(35):
        starts = draw.integers(0, len(tokens) - 65, 4)
        _, gradients = loss(model, mx.array(np.stack([tokens[start : start + 65] for start in starts])))
        optimizer.update(model, gradients)
        mx.eval(model.state, optimizer.state)
    return model


def asked(pick: random.Random) -> dict:
    """A request at random."""
    start = pick.randrange(1000)
    prompt = pick.choice([SEEN, VERSE[start : start + pick.choice([1, 20, 90, 155])], "to a summer's day, to a su", ""])
    body = {
        "prompt": prompt,
        "max_tokens": pick.choice([1, 2, 8, 20, 40]),
        "temperature": pick.choice([0, 0, 0.3, 0.7, 1.2]),
        "top_k": pick.choice([0, 5, 50]),
        "top_p": pick.choice([0.8, 1.0]),
        "repetition_penalty": pick.choice([1.0, 1.0, 1.3]),
        "presence_penalty": pick.choice([0.0, 0.0, 0.6]),
        "frequency_penalty": pick.choice([0.0, 0.0, 0.4]),
        "logprobs": pick.choice([None, 0, 3]),
        "stop": pick.choice([[], [], ["er's"], ["\n"], ["day", "I c"]]),
        "n": pick.choice([1, 1, 2]),
        "seed": pick.randrange(2**32),
    }
    match pick.randrange(8):
        case 0:
            body["structured_outputs"] = {"regex": r"( to a summer's day| thee|[a-z. ]){1,9}"}
        case 1:
            body["structured_outputs"] = {"choice": ["compare thee to a day", "compare thee to a night", "compare"]}
        case 2:
            body |= {"echo": True, "n": 1}
        case 3:
            body["logit_bias"] = {"256": 5.0, "0": -3.0}  # the text may end
    return body


def answers(model: GPT2, bodies: list[dict], order: random.Random, **how) -> tuple[list, list]:
    """The records of all texts, and the usages, where the requests come and go in an order of their own."""
    engine = Engine(model, encoding=BYTES, **how)
    waiting, requests, by_id = list(bodies), [], {}
    while waiting or engine.has_work:
        if waiting and order.random() < 0.5:
            request = parse(CompletionRequest, json.dumps(waiting.pop(0)).encode(), BYTES.n_vocab)
            prompts = [EncodedPrompt.of(prompt, VOCABULARY, BLOCK, request.echo) for prompt in request.prompts]
            pairs = choices_of(request, prompts, BYTES)
            requests.append((prompts, [choice for _, choice in pairs]))
            for job, choice in pairs:
                by_id[engine.add(*job)] = choice
        for output in engine.step():
            assert not output.failure
            if by_id[output.id].take(output).finish_reason:
                engine.cancel(output.id)
    records = [[choice.record for choice in choices] for _, choices in requests]
    return records, [usage_of(*request) for request in requests]


@pytest.fixture(scope="module")
def bodies() -> list[dict]:
    pick = random.Random(5)
    return [asked(pick) for _ in range(200)]


@pytest.fixture(scope="module")
def expected(model, bodies) -> list:
    return answers(model, bodies, random.Random(0), n_slots=8)[0]


@pytest.mark.cpu("a GPU's rows have other bits in other numbers")
@pytest.mark.parametrize(("speculate", "by_model"), [("auto", False), (7, False), ("auto", True), (7, True)])
def test_200_requests_get_the_texts_and_the_bits_that_they_get_without_drafts(
    model, small, bodies, expected, speculate, by_model
):
    how = {"speculate": speculate, "draft_model": small if by_model else None}
    got, usages = answers(model, bodies, random.Random(1), n_slots=5, n_prefixes=4, **how)
    assert got == expected
    details = [usage.completion_tokens_details for usage in usages]
    if speculate == 7:
        assert sum(d.accepted_prediction_tokens for d in details) > 500
        assert sum(d.rejected_prediction_tokens for d in details) > 500
    for usage, d in zip(usages, details):
        assert d.accepted_prediction_tokens <= usage.completion_tokens


def run(engine: Engine, prompt: list[int], **params) -> list:
    engine.add(prompt, SamplingParams(**params))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def tokens_of(outputs: list) -> list:
    return [token for output in outputs for token in output.tokens]


LOOP = BYTES.encode_ordinary("day to day to day to day to ")


def test_a_text_that_repeats_itself_takes_fewer_passes(model):
    passes = []
    how = {"max_tokens": 100, "temperature": 0, "logit_bias": {BYTES.eot_token: -100.0}}
    plain = run(Engine(model, 1, encoding=BYTES), LOOP, **how)
    engine = Engine(model, 1, lambda _, n_tokens: passes.append(n_tokens), encoding=BYTES, speculate=7)
    drafted = run(engine, LOOP, **how)
    assert tokens_of(drafted) == tokens_of(plain)
    assert len(passes) < len(plain) / 2 and max(passes[1:]) == 8
    assert sum(output.accepted for output in drafted) == 100 - len(drafted)
    assert sum(output.drafted for output in drafted) == sum(passes[1:]) - len(drafted)


@pytest.mark.cpu("a GPU's rows have other bits in other numbers")
def test_past_block_size_the_window_slides_as_without_drafts(model):
    how = {"max_tokens": 400, "temperature": 0.2, "logprobs": 2, "seed": 4, "logit_bias": {BYTES.eot_token: -100.0}}
    plain = run(Engine(model, 1, encoding=BYTES), LOOP, **how)
    drafted = run(Engine(model, 1, encoding=BYTES, speculate=15), LOOP, **how)
    assert tokens_of(drafted) == tokens_of(plain)
    assert drafted[-1].slides == plain[-1].slides == 4
    assert sum(output.accepted for output in drafted) > 100


def test_what_is_to_take_no_shortcut_is_not_drafted(model):
    engine = Engine(model, 2, encoding=BYTES, speculate=7)
    outputs = run(engine, LOOP, max_tokens=60, temperature=0, cold=True)
    assert not any(output.drafted for output in outputs)


@pytest.mark.parametrize("penalty", [0.1, 0.2, 0.5])
def test_penalties_see_the_drafted_tokens(model, penalty):
    """A token that was drafted before is as unlikely as one that was drawn."""
    how = {"max_tokens": 60, "temperature": 0, "frequency_penalty": penalty}
    drafted = run(Engine(model, 1, encoding=BYTES, speculate=7), LOOP, **how)
    assert sum(output.accepted for output in drafted) > 5
    assert tokens_of(drafted) == tokens_of(run(Engine(model, 1, encoding=BYTES), LOOP, **how))


def test_a_constraint_sees_the_drafted_tokens_and_may_end_within_them(model):
    for pattern in ("(day to ){3}day", "(day to )*da?", "(day |to ){1,5}"):
        how = {"max_tokens": 60, "temperature": 0, "constraint": Constraint("regex", pattern)}
        plain = run(Engine(model, 1, encoding=BYTES), LOOP, **how)
        drafted = run(Engine(model, 1, encoding=BYTES, speculate=7), LOOP, **how)
        assert tokens_of(drafted) == tokens_of(plain)
        assert drafted[-1].finish_reason == plain[-1].finish_reason
        assert len(drafted) < len(plain)


def test_rows_that_share_slots_have_the_bits_of_rows_by_themselves(model):
    """Some slots with several tokens, some with one, and one between them with none."""
    texts = {1: LOOP[:20], 2: LOOP[3:28], 4: LOOP[:9]}
    several = {1: 3, 2: 1, 4: 4}  # newest tokens that are read in one pass
    one_by_one, together = KVCache(model.config, 5), KVCache(model.config, 5)
    expected = []
    for slot, text in texts.items():
        for cache in (one_by_one, together):
            read = len(text) - several[slot]
            model.hidden(mx.array([text[:read]]), cache=cache.extend([slot], [0], [read], read))
        for at in range(len(text) - several[slot], len(text)):
            view = one_by_one.extend([slot], [at], [1], 1)
            expected.append(np.array(model.hidden(mx.array([[text[at]]]), cache=view))[0, 0])
    rows = [(slot, at) for slot, text in texts.items() for at in range(len(text) - several[slot], len(text))]
    slots, starts = map(list, zip(*rows))
    view = together.extend(slots, starts, [1] * 8, 1)
    got = np.array(model.hidden(mx.array([[texts[slot][at]] for slot, at in rows]), cache=view))[:, 0]
    assert np.abs(got - np.stack(expected)).max() <= (1e-4 if device.on_gpu() else 0)


def test_text_streams_with_drafts_as_it_does_without(model):
    plain = list(stream(model, BYTES, "day to day to day", seed=1, max_tokens=80, stop="e's", speculate="off"))
    drafted = list(stream(model, BYTES, "day to day to day", seed=1, max_tokens=80, stop="e's", speculate=15))
    assert "".join(drafted) == "".join(plain)


def test_a_draft_beyond_a_stop_string_is_in_no_text():
    request = parse(CompletionRequest, b'{"prompt": "a", "stop": "cd", "seed": 1}', BYTES.n_vocab)
    [(_, choice)] = choices_of(request, [EncodedPrompt.of("a", VOCABULARY, BLOCK, echo=False)], BYTES)
    tokens = tuple(Token(id) for id in BYTES.encode_ordinary("bcdefg"))
    assert choice.take(Output(0, tokens, drafted=9, accepted=5)).finish_reason == "stop"
    assert (choice.whole.text, choice.n_drafted, choice.n_accepted, len(choice.ids)) == ("b", 9, 3, 3)
