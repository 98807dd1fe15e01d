"""A draft model: what it drafts, how much of it, and what is drafted for a text that it cannot guess."""

import dataclasses
import itertools
import random

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from served import begun, http
from test_drafts import COUNTS, NEVER, PAYS

from gpt2_mlx import checkpoint, tokenizer
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation import draft_model
from gpt2_mlx.generation.draft_model import Follower, ModelDrafter
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.generation.scheduler import Sequence
from gpt2_mlx.model import GPT2
from gpt2_mlx.serving.config import ServeConfig

VOCABULARY = tokenizer.of_merges([])
BYTES = VOCABULARY.encoding
SHAPE = GPT2Config(block_size=48, vocab_size=BYTES.n_vocab, n_layer=1, n_head=2, n_embd=32)
PROMPT = BYTES.encode_ordinary("What is past is prologue")
NO_END = {BYTES.eot_token: -100.0}


def decided(config: GPT2Config, seed: int) -> GPT2:
    """A model whose probabilities are far from equal."""
    model = GPT2(config, seed)
    model.update(tree_map(lambda p: 8 * p if p.ndim == 2 else p, model.parameters()))
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="module")
def model() -> GPT2:
    return decided(SHAPE, 1)


def run(engine: Engine, *all_params: dict) -> dict[int, list]:
    """The outputs of each text."""
    outputs = {engine.add(PROMPT, SamplingParams(logit_bias=NO_END, **params)): [] for params in all_params}
    while engine.has_work:
        for output in engine.step():
            outputs[output.id].append(output)
    return outputs


def ids(outputs: list) -> list[int]:
    return [token.id for output in outputs for token in output.tokens]


WAYS = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.9, "top_k": 0, "top_p": 0.9, "seed": 4},
    {"temperature": 1.0, "repetition_penalty": 1.4, "frequency_penalty": 0.5, "seed": 5},
]


def test_a_model_that_drafts_for_itself_is_right(model):
    """So the draws are those of the text: with its seed, at its places, after its penalties; also past the window."""
    ways = [{"max_tokens": 90} | way for way in WAYS]
    plain = run(Engine(model, 4, encoding=BYTES), *ways)
    drafted = run(Engine(model, 4, encoding=BYTES, speculate=3, draft_model=model), *ways)
    assert [ids(outputs) for outputs in drafted.values()] == [ids(outputs) for outputs in plain.values()]
    for outputs in drafted.values():
        n_drafted, n_accepted = (sum(getattr(o, name) for o in outputs) for name in ("drafted", "accepted"))
        assert n_accepted >= 0.95 * n_drafted > 40  # a chunk may have other last bits than rows
        assert len(outputs) < 45 and outputs[-1].slides == 3


def sequence(slot: int = 0, rate: float | None = None, prompt: list[int] = PROMPT[:8], **params) -> Sequence:
    made = Sequence(slot, prompt, SamplingParams(**{"temperature": 0} | params), 48)
    made.slot = slot
    if rate is not None:
        made.guesses = Follower(Sequence(slot, prompt, dataclasses.replace(made.params, cold=True), 48), rate)
    return made


def drafter(model: GPT2, speculate: str | int = "auto", seconds: dict[int, float] = PAYS, own: float = 0.0):
    made = ModelDrafter(model, 4, speculate, COUNTS, None, lambda *_: None)
    for n, _ in itertools.product(COUNTS, range(2)):
        made.note(n, seconds[n])
        made._own_costs.note(n, own)
    return made


def test_a_draft_is_what_the_small_model_writes_whatever_was_drawn_before(model):
    """Drafts are taken up to any place, texts change their slots, and one is not drafted for in some steps."""
    pick, made = random.Random(2), drafter(model, 3)
    first, second, third = sequence(0), sequence(1, prompt=PROMPT[8:20]), sequence(0, prompt=PROMPT[:5])
    slots = {0: {first: 0, second: 1}, 4: {third: 0, first: 1, second: 2}}
    slots |= {6: {third: 0, second: 2, first: 3}, 8: {third: 0, first: 1, second: 3}}  # the first comes back to one
    for step in range(12):
        if step in slots:
            texts = list(slots[step])
            for text, slot in slots[step].items():
                text.slot = slot
        asked = texts if step % 3 else texts[:1]
        for text, draft in zip(asked, made.drafts(asked)):
            expected = Engine(model, 1)
            expected.add(text.context, SamplingParams(max_tokens=3, temperature=0))
            assert draft == [t.id for o in drain(expected) for t in o.tokens][: len(draft)] and len(draft) == 3
            drawn = [*draft[: pick.randrange(4)], pick.randrange(256)]
            drawn = drawn[:-1] or drawn if pick.random() < 0.3 else drawn  # all right: a constraint cut the rows
            for token in drawn:
                text.append(token)
            made.learn(text, drawn)


def drain(engine: Engine) -> list:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def lengths(made: ModelDrafter, *sequences: Sequence) -> list[int]:
    return [len(draft) for draft in made.drafts(list(sequences))]


def test_as_much_is_drafted_as_pays(model):
    assert [lengths(drafter(model), sequence(rate=rate))[0] for rate in (0.0, 0.2, 0.8, 1.0)] == [0, 1, 7, 15]
    assert lengths(drafter(model, own=1.0), sequence(rate=0.8)) < lengths(drafter(model), sequence(rate=0.8))
    assert lengths(drafter(model, own=9.0), sequence(rate=0.8)) == [0]
    assert lengths(drafter(model, seconds=NEVER), sequence(rate=0.99)) == [0]
    crowd = lengths(drafter(model), *(sequence(slot, 0.9) for slot in range(4)))
    assert len(set(crowd)) == 1 and 0 < crowd[0] <= 7  # 32 rows


def test_a_text_that_was_not_guessed_is_tried_again_after_a_pause(model):
    made = drafter(model)
    text = sequence(rate=0.0, max_tokens=300)
    tries = []
    for step in range(200):
        [draft] = made.drafts([text])
        tries += [step] if draft else []
        wrong = (draft[0] + 1) % 256 if draft else 0
        text.append(wrong)
        made.learn(text, [wrong])
    assert tries == [draft_model.PAUSE, 2 * draft_model.PAUSE + 1, 3 * draft_model.PAUSE + 2]


def test_trials_take_a_small_share_of_the_time(model, monkeypatch):
    monkeypatch.setattr(draft_model.time, "perf_counter", itertools.count(0.0, 1.0).__next__)  # each takes seconds
    made = drafter(model)
    text = sequence(rate=0.0, max_tokens=3000)
    tries = []
    for step in range(2000):
        [draft] = made.drafts([text])
        tries += [step] if draft else []
        text.append(0)
        made.learn(text, [0 if not draft or draft[0] else 1])
        text.guesses.rate = 0.0
        made.note(1, 1.0)
        assert made._tried <= draft_model.TRIED * made._seconds + 10
    assert 3 < len(tries) < 1999 // draft_model.PAUSE


@pytest.mark.parametrize(
    ("changes", "drafted"),
    [({}, 5), ({"cold": True}, 0), ({"max_tokens": 3}, 2), ({"max_tokens": 1}, 0), ({"prompt": [1] * 46}, 2)],
)
def test_a_number_drafts_so_many_as_long_as_there_is_room(model, changes, drafted):
    assert lengths(drafter(model, 5, NEVER), sequence(**changes)) == [drafted]


def test_a_new_text_is_taken_to_be_guessed_as_others_were(model):
    made, text = drafter(model), sequence(rate=0.5)
    for _ in range(200):
        text.guesses.latest = [1]
        made.learn(text, [2])
    new = sequence(1)
    made.drafts([new])
    assert new.guesses.rate < 0.1


def test_another_vocabulary_is_refused(model, tmp_path):
    checkpoint.save(tmp_path / "large", model, vocabulary=VOCABULARY)
    own = tokenizer.of_merges([("a", "b")])
    checkpoint.save(tmp_path / "small", decided(dataclasses.replace(SHAPE, vocab_size=258), 1), vocabulary=own)
    with pytest.raises(ValueError, match="--draft-model is .*small; it must have the vocabulary of .*large"):
        draft_model.find(str(tmp_path / "small"), tmp_path / "large")
    with pytest.raises(ValueError, match="--draft-model is nowhere: "):
        draft_model.find("nowhere", tmp_path / "large")
    assert draft_model.find(str(tmp_path / "large"), tmp_path / "large") == tmp_path / "large"
    with pytest.raises(ValueError, match="--draft-model is small, but --speculate is off"):
        ServeConfig(draft_model="small", speculate="off")


def test_an_engine_refuses_another_number_of_tokens(model):
    with pytest.raises(ValueError, match="the draft model has 258 tokens, not 257"):
        Engine(model, 1, draft_model=decided(dataclasses.replace(SHAPE, vocab_size=258), 1))


def test_a_long_text_is_read_before_it_is_tried(model):
    """Even where others were hard to guess: the pause does not begin anew with what is only read."""
    large = decided(dataclasses.replace(SHAPE, block_size=600), 1)
    made = drafter(large)
    made._rate = 0.0
    text = Sequence(0, PROMPT * 20, SamplingParams(max_tokens=9, temperature=0, prompt_logprobs=True), 600)
    text.slot = 0
    tries = [step for step in range(draft_model.PAUSE + 10) if lengths(made, text)[0]]
    assert tries[:1] == [draft_model.PAUSE + 3]  # a chunk in each step: 480 tokens are four
    assert text.guesses.sequence.noted_prompt == []


def test_what_has_no_room_for_a_draft_is_not_read(model):
    passes = []
    engine = Engine(model, 1, lambda ids, n: passes.append(n), speculate=4, draft_model=model)
    engine.add(PROMPT, SamplingParams(max_tokens=1))
    drain(engine)
    assert passes == [len(PROMPT) - 1, 1]


def test_it_is_served(model, tmp_path):
    checkpoint.save(tmp_path / "model", model, vocabulary=VOCABULARY)
    flags = "--checkpoint", str(tmp_path / "model"), "--draft-model", str(tmp_path / "model"), "--speculate", "3"
    with begun(tmp_path, *flags) as (_, url):
        body = {"prompt": "What is", "max_tokens": 16, "temperature": 0, "logit_bias": {str(BYTES.eot_token): -100}}
        answer = http.post(url + "/v1/completions", json=body).json()
    details = answer["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 8 > details["rejected_prediction_tokens"]
