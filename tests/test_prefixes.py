"""Kept prefixes save time and change no bit."""

import random
from collections import defaultdict

import mlx.core as mx
import pytest
from models import far_from_uniform
from test_engine import run

from gpt2_mlx import device
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation.capacity import prefixes_that_fit
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.generation.prefixes import PrefixCounts, Prefixes
from gpt2_mlx.generation.scheduler import CHUNK
from gpt2_mlx.model import GPT2

CONFIG = GPT2Config(block_size=4 * CHUNK, vocab_size=97, n_layer=2, n_head=2, n_embd=32)
BLOCK_BYTES = 2 * 2 * 32 * CHUNK * 4


@pytest.fixture(scope="module")
def model() -> GPT2:
    return far_from_uniform(CONFIG)


def ask(engine: Engine, prompt: list[int], **params) -> tuple[list[int], int]:
    """The tokens of a text, and how many of its prompt's were kept."""
    id = engine.add(prompt, SamplingParams(**{"max_tokens": 2, "seed": 1, "logprobs": 0} | params))
    outputs = run(engine)[id]
    return [token for output in outputs for token in output.tokens], outputs[-1].found


def tokens(seed: int, n: int) -> list[int]:
    return random.Random(seed).choices(range(97), k=n)


def conversations(n: int, seed: int) -> list[tuple[list[int], SamplingParams]]:
    """Requests whose prompts begin alike, in places that are no cuts too."""
    pick, prompts = random.Random(seed), [[]]
    asked = []
    for i in range(n):
        begin = pick.choice(prompts)
        begin = begin[: pick.choice([len(begin), len(begin), CHUNK, CHUNK + 1, 2 * CHUNK, 300])]
        prompt = begin + tokens(i, pick.choice([1, 20, CHUNK - 1, CHUNK, CHUNK + 1, 150]))
        prompts.append(prompt)
        params = {"max_tokens": pick.choice([1, 2, 5]), "temperature": pick.choice([0, 1.0]), "seed": i}
        asked.append((prompt, SamplingParams(**params, logprobs=0, prompt_logprobs=pick.random() < 0.1)))
    return asked


def in_a_crowd(engine: Engine, asked: list, seed: int) -> list[list]:
    """The tokens and log-probabilities of each, which come in any order, while others leave."""
    order, outputs, ids = random.Random(seed), defaultdict(list), {}
    left, strangers = list(range(len(asked))), []
    order.shuffle(left)
    while left or engine.has_work:
        while left and order.random() < 0.5:
            i = left.pop()
            ids[engine.add(*asked[i])] = i
        if strangers and order.random() < 0.3:
            engine.cancel(strangers.pop())
        if order.random() < 0.1:
            strangers.append(engine.add(order.choice(asked)[0], SamplingParams(max_tokens=9)))
        for output in engine.step():
            outputs[output.id].append(output)
    texts = [[t for o in outputs[id] for t in (*o.prompt, *o.tokens)] for id in sorted(ids, key=ids.get)]
    return [[token.id for token in text] for text in texts] if device.on_gpu() else texts  # whose bits may differ


def test_on_off_full_or_thrashing_each_text_has_the_same_bits(model):
    asked = conversations(40, seed=4)
    expected = in_a_crowd(Engine(model, n_slots=1), asked, seed=0)
    for n_prefixes in (1, 3, 1000):
        engine = Engine(model, n_slots=4, n_prefixes=n_prefixes)
        assert in_a_crowd(engine, asked, seed=n_prefixes) == expected
        counts = engine.prefixes.take_counts()
        assert counts.hits and counts.n_bytes <= n_prefixes * BLOCK_BYTES
    assert len(engine.prefixes) == counts.misses  # nothing was read twice


def test_a_text_that_is_gone_on_with_is_as_if_it_were_new(model):
    """What was drawn and then comes back in a prompt has no block: decoded keys have other bits than those read."""
    prompt = tokens(1, CHUNK - 8)
    warm, cold = Engine(model, n_slots=2, n_prefixes=9), Engine(model, n_slots=2)
    drawn, _ = ask(warm, prompt, max_tokens=30)
    longer = prompt + [token.id for token in drawn] + tokens(2, 9)
    (again, found), (expected, _) = (ask(engine, longer, max_tokens=20) for engine in (warm, cold))
    assert again == expected and found == 0
    assert ask(warm, longer, max_tokens=20) == (expected, CHUNK)


def test_what_was_found_is_told(model):
    engine = Engine(model, n_slots=1, n_prefixes=100)
    prompt = tokens(1, 300)
    changed = [*prompt[:200], (prompt[200] + 1) % 97, *prompt[201:]]
    for asked, found in (
        (prompt, 0),
        (prompt, 2 * CHUNK),
        (prompt + tokens(2, 150), 2 * CHUNK),
        (changed, CHUNK),
        (tokens(3, 300), 0),
        (prompt[: CHUNK + 1], CHUNK),
        (prompt[:CHUNK], 0),  # its last token is decoded
        (prompt[1:], 0),
        (prompt[CHUNK:], 0),
        (tokens(2, 40) + prompt, 0),
    ):
        assert ask(engine, asked)[1] == found
    assert ask(engine, prompt, prompt_logprobs=True)[1] == 0  # they follow from the pass
    assert ask(Engine(model), prompt)[1] == 0


def test_what_was_found_is_told_to_equal_prompts_at_once_too(model):
    """The first reads and keeps; the second finds the blocks, although it could copy them from the first's slot."""
    engine, prompt = Engine(model, n_slots=2, n_prefixes=100), tokens(1, 300)
    ids = [engine.add(prompt, SamplingParams(max_tokens=9, seed=1, logprobs=0)) for _ in range(2)]
    outputs = run(engine, *ids)
    assert [outputs[id][-1].found for id in ids] == [0, 2 * CHUNK]
    assert len({tuple(token for output in outputs[id] for token in output.tokens) for id in ids}) == 1


def test_a_window_that_slides_is_read_anew(model):
    engine = Engine(model, n_slots=1, n_prefixes=100)
    prompt = tokens(1, 4 * CHUNK)
    first, _ = ask(engine, prompt, max_tokens=2 * CHUNK + 9)
    n = len(engine.prefixes)
    assert n == 3
    assert ask(engine, prompt, max_tokens=2 * CHUNK + 9) == (first, 3 * CHUNK) and len(engine.prefixes) == n


def test_prompts_that_come_together_and_begin_alike_are_read_once(model):
    engine, read = Engine(model, n_slots=8, on_pass=lambda _, n: read.append(n), n_prefixes=100), []
    begin = tokens(1, 2 * CHUNK)
    for seed in range(6):
        engine.add(begin + tokens(seed, 10), SamplingParams(max_tokens=1))
    run(engine)
    assert read.count(CHUNK) == 2 and engine.prefixes.take_counts() == PrefixCounts(10, 2, 2 * BLOCK_BYTES)


def blocks(prefixes: Prefixes, prompt: list[int]) -> list[bool]:
    """Which blocks of a prompt are kept, without using them."""
    held = dict(prefixes._blocks)
    prompt = [prompt[:end] for end in range(CHUNK, len(prompt) + 1, CHUNK)]
    found = [prefixes.get(0, part) is not None for part in prompt]
    prefixes._blocks = type(prefixes._blocks)(held)
    return found


def test_those_used_last_are_kept_and_of_a_prompt_its_beginning():
    def read(prompt):
        for end in range(CHUNK, len(prompt) + 1, CHUNK):
            if not prefixes.get(0, prompt[:end]):
                prefixes.put(0, prompt[:end], [mx.zeros(4)])

    prefixes = Prefixes(room=4)
    a, b, c = (tokens(seed, 2 * CHUNK) for seed in range(3))
    read(a)
    read(b)
    assert blocks(prefixes, a) == blocks(prefixes, b) == [True, True] and prefixes.n_bytes == 4 * 16
    read(a[:CHUNK])
    read(c[:CHUNK])
    assert (blocks(prefixes, a), blocks(prefixes, b), blocks(prefixes, c)) == (
        [True, False],
        [True, True],
        [True, False],
    )
    read(b)
    read(c)
    assert (blocks(prefixes, a), blocks(prefixes, b), blocks(prefixes, c)) == ([False] * 2, [True] * 2, [True] * 2)
    long = tokens(9, 6 * CHUNK)
    read(long)
    assert blocks(prefixes, long) == [True] * 4 + [False] * 2 and len(prefixes) == 4


def test_the_memory_that_prefixes_take(monkeypatch):
    monkeypatch.setattr(device, "memory", lambda: 32 * 10 * BLOCK_BYTES)
    assert prefixes_that_fit(CONFIG, mx.float32) == 10 and prefixes_that_fit(CONFIG, mx.float16) == 20
    assert prefixes_that_fit(CONFIG, mx.float32, 0) == 0
    assert prefixes_that_fit(CONFIG, mx.float32, 1) == 10**6 // BLOCK_BYTES
    monkeypatch.setattr(device, "memory", lambda: 10**15)
    assert prefixes_that_fit(CONFIG, mx.float32) == 10**9 // BLOCK_BYTES
