"""Adapters beside one model: each row of a pass has its own, whatever company it is in."""

import dataclasses
import functools
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_map

from gpt2_mlx import adapter, checkpoint, lora, pretrained, tokenizer
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation.adapters import Adapters, size
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.generation.scheduler import CHUNK
from gpt2_mlx.lora import TARGETS, LoRA
from gpt2_mlx.model import GPT2

SHAPE = GPT2Config(block_size=CHUNK + 40, vocab_size=257, n_layer=2, n_head=2, n_embd=64)
# name: rank, number of blocks, targets, block_size
KINDS = {
    "pirate": (3, 2, tuple(TARGETS), SHAPE.block_size),
    "poet": (20, 1, ("attn.c_attn", "mlp.c_proj"), SHAPE.block_size),
    "short": (1, 2, ("mlp.c_fc",), 24),
}


def make(base: Path, folder: Path, rank: int, layers: int, targets: tuple[str, ...], block_size: int) -> Path:
    """The folder of an adapter that changes its base very much."""
    model = pretrained.load(base)
    shape = LoRA(rank=rank, alpha=2.0 * rank, dropout=0.1, layers=layers, targets=targets)
    lora.add(model, dataclasses.replace(shape, base=str(base), sha256=adapter.fingerprint(base)), seed=rank)
    noise = iter(mx.random.split(mx.random.key(rank), 32))
    model.update(tree_map(lambda p: p + 0.3 * mx.random.normal(p.shape, key=next(noise)), model.trainable_parameters()))
    model.config = dataclasses.replace(model.config, block_size=block_size)
    checkpoint.save(folder, model, vocabulary=pretrained.vocabulary(base))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The base, and its adapters by name."""
    folder = tmp_path_factory.mktemp("adapters")
    model = GPT2(SHAPE, seed=1)
    model.update(tree_map(lambda p: 8 * p if p.ndim == 2 else p, model.parameters()))  # far from uniform
    checkpoint.save(folder / "base", model, vocabulary=tokenizer.of_merges([]))
    made = {name: make(folder / "base", folder / name, *kind) for name, kind in KINDS.items()}
    return {"base": folder / "base"} | made


def engine_of(folders: dict[str, Path], *names: str, n_slots: int = 1, **others) -> Engine:
    model = pretrained.load(folders["base"])
    adapters = Adapters(model, {name: folders[name] for name in names})
    return Engine(model, n_slots, adapters=adapters, **others)


@pytest.fixture(scope="module")
def engine(folders) -> Engine:
    """One that knows all adapters, with more slots than a pass has rows."""
    return engine_of(folders, *KINDS, n_slots=36, n_prefixes=4)


def finish(engine: Engine) -> dict[int, list]:
    """Step until the sequences end; id -> their tokens, with log-probabilities."""
    texts = {}
    while engine.has_work:
        for output in engine.step():
            texts.setdefault(output.id, []).extend(output.tokens)
    return texts


def params(**fields) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 4, "temperature": 1.0, "top_k": 0, "logprobs": 2, "seed": 1} | fields)


def alone(engine: Engine, prompt: list[int], params: SamplingParams, number: int = 0) -> list:
    id = engine.add(prompt, dataclasses.replace(params, cold=True), adapter=number)
    return finish(engine)[id]


def request(n: int, seed: int) -> tuple[list[int], SamplingParams]:
    return prompt_of(seed, n), params(seed=seed, max_tokens=2 + n % 3)


def prompt_of(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


NUMBERS = st.integers(0, len(KINDS))
LENGTHS = st.sampled_from([1, 3, 9, 30, 33, CHUNK + 2, CHUNK + 39])
ASKED = st.tuples(NUMBERS, LENGTHS, st.integers(0, 1), st.integers(0, 2))  # number, tokens, seed, steps after it


@pytest.fixture(scope="module")
def lonely(folders):
    """What an engine that knows no other adapter gives, to one text at a time."""
    engines = [engine_of(folders), *(engine_of(folders, name) for name in KINDS)]
    return functools.cache(lambda number, n, seed: alone(engines[number], *request(n, seed), min(number, 1)))


@pytest.mark.cpu("a GPU may sum in another order")
@settings(max_examples=8)
@given(asked=st.lists(ASKED, min_size=2, max_size=40))
def test_in_mixed_company_each_row_has_the_bits_it_has_alone(engine, lonely, asked):
    texts, is_of = {}, {}
    for number, n, seed, steps in asked:
        is_of[engine.add(*request(n, seed), adapter=number)] = number, n, seed
        for output in [output for _ in range(steps) for output in engine.step()]:
            texts.setdefault(output.id, []).extend(output.tokens)
    for id, tokens in finish(engine).items():
        texts.setdefault(id, []).extend(tokens)
    for id, key in is_of.items():
        assert texts[id] == lonely(*key), key


@pytest.mark.parametrize("name", KINDS)
def test_beside_its_base_an_adapter_gives_what_it_gives_fused(folders, engine, name):
    """Also where it learned with a shorter window than its base has."""
    fused, number = Engine(pretrained.load(folders[name])), 1 + list(KINDS).index(name)
    for n in (1, 20, CHUNK + 30):
        asked = prompt_of(7, n), params(max_tokens=12)
        expected, tokens = alone(fused, *asked), alone(engine, *asked, number)
        assert [token.id for token in tokens] == [token.id for token in expected]
        assert [t.logprob for t in tokens] == pytest.approx([t.logprob for t in expected], abs=1e-4)
        assert tokens != alone(engine, *asked), "it changes nothing"


@pytest.mark.cpu("equal bits in any company")
def test_drafted_rows_have_the_adapter_of_their_sequence(folders, engine):
    asked = [([5, 6, 7] * (3 + n), params(max_tokens=12, temperature=0), n) for n in range(4)]
    expected = [alone(engine, *each) for each in asked]
    guessing = engine_of(folders, *KINDS, n_slots=4, speculate=4)
    ids = [guessing.add(prompt, how, adapter=number) for prompt, how, number in asked]
    texts, drafted = {}, 0
    while guessing.has_work:
        for output in guessing.step():
            drafted += output.drafted
            texts.setdefault(output.id, []).extend(output.tokens)
    assert [texts[id] for id in ids] == expected and drafted


def test_where_no_row_has_an_adapter_none_is_multiplied(folders):
    """Neither in prefill nor in decoding, after passes that had one."""
    engine, expected = engine_of(folders, *KINDS), alone(engine_of(folders), [1, 2], params())
    alone(engine, [1, 2], params(), 1)
    for layer in engine._adapters._layers:
        layer.b = mx.full(layer.b.shape, mx.nan)
    assert alone(engine, [1, 2], params()) == expected


def test_a_prefix_is_of_use_to_its_own_adapter_only(folders):
    engine, prompt = engine_of(folders, *KINDS, n_prefixes=4), prompt_of(1, CHUNK + 5)
    counts = []
    for number in (0, 1, 2, 1, 0):
        expected = alone(engine, prompt, params(), number)
        id = engine.add(prompt, params(), adapter=number)
        assert finish(engine)[id] == expected
        counts.append(engine.prefixes.take_counts()[:2])
    assert counts == [(0, 1), (0, 1), (0, 1), (1, 0), (1, 0)]


def test_equal_prompts_of_different_adapters_are_not_shared(folders, engine):
    prompt = prompt_of(2, 40)
    expected = [alone(engine, prompt, params(), number) for number in range(4)]
    ids = [engine.add(prompt, params(), adapter=number) for number in range(4)]
    texts = finish(engine)
    assert [texts[id] for id in ids] == expected


def test_the_infinity_of_one_adapter_reaches_no_other(folders):
    engine = engine_of(folders, *KINDS, n_slots=4)
    expected = [alone(engine, [1, 2, 3], params(), number) for number in range(4)]
    for layer in engine._adapters._layers:
        layer.a[engine._adapters._parts[0]] = mx.inf
    ids = [engine.add([1, 2, 3], params(), adapter=number) for number in (0, 2, 3)]
    engine.add([1, 2, 3], params(), adapter=1)
    texts = finish(engine)
    assert [texts[id] for id in ids] == [expected[0], *expected[2:]]


def test_the_size_is_foretold(folders):
    model = pretrained.load(folders["base"])
    adapters = Adapters(model, {"pirate": folders["pirate"]})
    own = sum(layer.a.nbytes + layer.b.nbytes for layer in adapters._layers)
    assert size({"pirate": folders["pirate"]}, SHAPE, "float32") == own


def test_one_that_does_not_fit_is_named(folders, tmp_path):
    other = tmp_path / "other"
    checkpoint.save(other, GPT2(dataclasses.replace(SHAPE, n_embd=32)), vocabulary=tokenizer.of_merges([]))
    folder = make(other, tmp_path / "narrow", *KINDS["pirate"])
    with pytest.raises(ValueError, match=r"adapter narrow: .*lora_a"):
        Adapters(pretrained.load(folders["base"]), {"narrow": folder})
    for file in adapter.FILES:
        mx.save_safetensors(str(folder / file), {"wte.weight": mx.zeros((2,))})
    assert size({"other": folder}, SHAPE, "float32") == 0
    with pytest.raises(ValueError, match=r"adapter other: \S+: .*wte.weight"):
        Adapters(pretrained.load(folders["base"]), {"other": folder})
