"""Several engines behind one: each sequence gets the text that its checkpoint gives it alone."""

import gc
import weakref
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.model import GPT2
from gpt2_mlx.serving.engines import MAX_ENGINES, Engines
from gpt2_mlx.serving.submission import QueueFull

CONFIG = GPT2Config(block_size=40, vocab_size=97, n_layer=1, n_head=2, n_embd=16)
OLD, NEW = Path("run/step-00000001"), Path("run/step-00000002")
PROMPT, PARAMS = [5, 6, 7], SamplingParams(max_tokens=12, seed=3, top_k=0, temperature=1.0)


def load(folder: Path) -> Engine:
    """An engine whose weights follow from the step; a checkpoint "broken" cannot be loaded."""
    if folder.name == "broken":
        raise ValueError("broken")
    model = GPT2(CONFIG, seed=int(folder.name[5:]))
    model.update(tree_map(lambda p: 8 * p if p.ndim == 2 else p, model.parameters()))  # far from uniform
    mx.eval(model.parameters())
    return Engine(model, n_slots=3)


@pytest.fixture
def made() -> dict[Path, weakref.ref]:
    """The engines that were made, by checkpoint, held by nobody here."""
    return {}


@pytest.fixture
def engines(made) -> Engines:
    def load_and_note(folder: Path) -> Engine:
        engine = load(folder)
        made[folder] = weakref.ref(engine)
        return engine

    return Engines(load_and_note, OLD)


def finish(engines: Engines) -> dict[int, list[int]]:
    """Step until all is done; id -> tokens."""
    texts = {}
    while engines.has_work:
        for output in engines.step():
            texts.setdefault(output.id, []).extend(token.id for token in output.tokens)
    return texts


def alone(folder: Path) -> list[int]:
    engine = load(folder)
    engine.add(PROMPT, PARAMS)
    return [token.id for output in iter_outputs(engine) for token in output.tokens]


def iter_outputs(engine: Engine):
    while engine.has_work:
        yield from engine.step()


def test_a_swap_leaves_what_was_begun_to_the_old_checkpoint(engines, made):
    before = [engines.add(PROMPT, PARAMS, engines.checkpoint) for _ in range(5)]  # two of them wait for a slot
    texts = {}
    for _ in range(4):
        for output in engines.step():
            texts.setdefault(output.id, []).extend(token.id for token in output.tokens)
    engines.swap(NEW)
    assert engines.checkpoint == NEW and engines.n_running + engines.n_waiting == 5
    after = engines.add(PROMPT, PARAMS, engines.checkpoint)
    for id, tokens in finish(engines).items():
        texts.setdefault(id, []).extend(tokens)
    assert alone(OLD) != alone(NEW)
    assert texts == {id: alone(OLD) for id in before} | {after: alone(NEW)}
    gc.collect()
    assert made[OLD]() is None, "the old model's memory is still held"


def test_a_checkpoint_that_a_request_names_answers_it_and_is_let_go(engines):
    named, plain = engines.add(PROMPT, PARAMS, NEW), engines.add(PROMPT, PARAMS, OLD)
    assert engines.n_running + engines.n_waiting == 2
    assert finish(engines) == {named: alone(NEW), plain: alone(OLD)}
    assert engines.checkpoint == OLD and engines.loaded == (OLD,)
    cancelled = engines.add(PROMPT, PARAMS, NEW)
    engines.cancel(cancelled)
    assert not engines.has_work and engines.loaded == (OLD,)


def test_engines_take_turns(engines):
    first, second = engines.add(PROMPT, PARAMS, OLD), engines.add(PROMPT, PARAMS, NEW)
    drawn = [output.id for _ in range(8) for output in engines.step()]
    assert sorted(drawn) == sorted([first, second] * 4)


def test_no_more_checkpoints_than_memory_is_meant_for(engines):
    for step in range(2, MAX_ENGINES + 1):
        engines.add(PROMPT, PARAMS, Path(f"run/step-{step}"))
    with pytest.raises(QueueFull, match=f"at most {MAX_ENGINES} may be"):
        engines.add(PROMPT, PARAMS, Path("run/step-9"))
    assert len(finish(engines)) == MAX_ENGINES - 1


def test_a_checkpoint_that_cannot_be_loaded_changes_nothing(engines):
    id = engines.add(PROMPT, PARAMS, OLD)
    with pytest.raises(ValueError, match="broken"):
        engines.swap(Path("run/broken"))
    with pytest.raises(ValueError, match="broken"):
        engines.add(PROMPT, PARAMS, Path("run/broken"))
    assert engines.checkpoint == OLD and finish(engines) == {id: alone(OLD)}


def test_a_failed_step_ends_the_sequences_of_its_engine_alone(engines, made):
    first, second = engines.add(PROMPT, PARAMS, OLD), engines.add(PROMPT, PARAMS, NEW)
    engines.step()
    engines.step()
    made[NEW]().model = None  # its next step raises
    for _ in range(2):
        try:
            engines.step()
        except AttributeError:
            assert engines.fail_step() == [second]
    assert engines.loaded == (OLD,)
    assert first in finish(engines)
