"""Several engines behind one: each sequence gets the text that its checkpoint gives it alone."""

import itertools
import weakref
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.generation.prefixes import PrefixCounts
from gpt2_mlx.model import GPT2
from gpt2_mlx.serving.engines import MAX_ENGINES, Engines, Full, TooLarge
from gpt2_mlx.serving.messages import Loaded, NotLoaded, NotTaken

CONFIG = GPT2Config(block_size=40, vocab_size=97, n_layer=1, n_head=2, n_embd=16)
OLD, NEW = Path("run/step-00000001"), Path("run/step-00000002")
PARTS = 3  # in which a checkpoint is loaded
TOO_LARGE = ("step-7", "step-8")  # there is room for one of them beside the one that answers
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
    def loading(folder: Path):
        for _ in range(PARTS):
            yield
        if folder.name in TOO_LARGE and len(engines.loaded) > 1:
            raise TooLarge("no room")
        engine = load(folder)
        made[folder] = weakref.ref(engine)
        return engine

    engines = Engines(loading, OLD)
    return engines


ids = itertools.count()


def add(engines: Engines, checkpoint: Path) -> int:
    id = next(ids)
    engines.add(id, PROMPT, PARAMS, id, checkpoint)
    return id


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


def test_what_prefixes_did_is_told_once_for_all_engines(engines):
    for folder, hits in ((OLD, 2), (NEW, 3)):
        add(engines, folder)
        finish(engines)
        engines._engines[folder].prefixes.take_counts = iter([PrefixCounts(hits, 1, 10 * hits)]).__next__
    assert engines.take_prefix_counts() == PrefixCounts(5, 2, 50)


def test_a_swap_leaves_what_was_begun_to_the_old_checkpoint(engines):
    before = [add(engines, engines.checkpoint) for _ in range(5)]  # two of them wait for a slot
    texts = {}
    for _ in range(4):
        for output in engines.step():
            texts.setdefault(output.id, []).extend(token.id for token in output.tokens)
    engines.swap(NEW)
    while engines.checkpoint == OLD:  # it is loaded beside the steps
        outputs = engines.step()
        assert outputs
        for output in outputs:
            texts.setdefault(output.id, []).extend(token.id for token in output.tokens)
    assert engines.take_news() == [Loaded(NEW)]
    after = add(engines, engines.checkpoint)
    for id, tokens in finish(engines).items():
        texts.setdefault(id, []).extend(tokens)
    assert alone(OLD) != alone(NEW)
    assert texts == {id: alone(OLD) for id in before} | {after: alone(NEW)}


def test_a_checkpoint_that_a_request_names_is_loaded_while_others_go_on(engines):
    plain, named = add(engines, OLD), add(engines, NEW)
    for _ in range(PARTS):
        assert [output.id for output in engines.step()] == [plain]
    assert finish(engines)[named] == alone(NEW)
    assert engines.checkpoint == OLD and not engines.has_work


def test_an_engine_without_work_is_kept_for_a_while_and_then_let_go(engines, made, monkeypatch):
    add(engines, NEW)
    finish(engines)
    assert engines.take_news() == [] and engines.loaded == (OLD, NEW)
    first = made[NEW]()
    add(engines, NEW)
    finish(engines)
    assert made[NEW]() is first  # not read again
    del first
    monkeypatch.setattr("gpt2_mlx.serving.engines.KEEP_SECONDS", 0.0)
    engines.take_news()
    assert engines.loaded == (OLD,) and made[NEW]() is None, "its memory is still held"


def test_what_waits_for_a_checkpoint_can_be_cancelled(engines):
    engines.cancel(add(engines, NEW))
    assert finish(engines) == {}


def test_engines_take_turns(engines):
    first, second = add(engines, OLD), add(engines, NEW)
    for _ in range(PARTS + 1):
        engines.step()
    drawn = [output.id for _ in range(8) for output in engines.step()]
    assert sorted(drawn) == sorted([first, second] * 4)


def test_room_is_made_by_letting_the_one_go_that_was_idle_longest(engines):
    paths = [Path(f"run/step-{step}") for step in range(2, MAX_ENGINES + 2)]
    for path in paths[:-1]:
        add(engines, path)
        finish(engines)
    assert engines.loaded == (OLD, *paths[:-1])
    add(engines, paths[-1])
    finish(engines)
    assert engines.loaded == (OLD, *paths[1:])


def test_no_more_checkpoints_are_in_use_than_allowed(engines):
    for step in range(2, MAX_ENGINES + 1):
        add(engines, Path(f"run/step-{step}"))
    with pytest.raises(Full, match=f"{MAX_ENGINES} checkpoints are in use"):
        add(engines, Path("run/step-9"))
    engines.swap(Path("run/step-9"))
    (news,) = engines.take_news()
    assert isinstance(news, NotLoaded)
    assert len(finish(engines)) == MAX_ENGINES - 1


def test_what_does_not_fit_takes_the_room_of_idle_engines_or_is_refused(engines):
    add(engines, NEW)
    finish(engines)
    large = add(engines, Path("run/step-7"))
    assert finish(engines)[large] == alone(Path("run/step-7"))
    assert engines.loaded == (OLD, Path("run/step-7"))
    busy, refused = add(engines, Path("run/step-7")), add(engines, Path("run/step-8"))
    assert list(finish(engines)) == [busy]
    assert engines.take_news() == [NotLoaded(Path("run/step-8"), "no room"), NotTaken(refused, "no room")]


def test_a_checkpoint_that_cannot_be_loaded_changes_nothing(engines):
    id = add(engines, OLD)
    broken = Path("run/broken")
    engines.swap(broken)
    named = add(engines, broken)
    assert finish(engines) == {id: alone(OLD)}
    assert engines.take_news() == [NotLoaded(broken, "broken"), NotTaken(named, "broken")]
    assert engines.checkpoint == OLD
