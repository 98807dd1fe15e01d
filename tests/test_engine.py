import gc
import random
import weakref

import mlx.core as mx
import numpy as np
import pytest
from models import far_from_uniform

from gpt2_mlx import blas, device, tokenizer
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation import decoder, sampling
from gpt2_mlx.generation.capacity import alike_rows, equal_row_counts, slots_that_fit
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.model import GPT2

CONFIG = GPT2Config(block_size=300, vocab_size=97, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def model() -> GPT2:
    return far_from_uniform(CONFIG)


def run(engine: Engine, *ids: int) -> dict[int, list]:
    """Step until the sequences end; id -> their outputs."""
    outputs = {id: [] for id in ids}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
    return outputs


def tokens_of(outputs: list) -> list[int]:
    return [token.id for output in outputs for token in output.tokens]


def alone(model: GPT2, prompt: list[int], params: SamplingParams) -> list[int]:
    engine = Engine(model, 1)  # as gpt2_mlx.stream has it
    id = engine.add(prompt, params)
    return tokens_of(run(engine, id)[id])


def requests(n: int, seed: int = 0) -> list[tuple[list[int], SamplingParams]]:
    pick = random.Random(seed)
    made = []
    for _ in range(n):
        prompt = [pick.randrange(97) for _ in range(pick.choice([1, 2, 5, 16, 17, 60, 299, 300, 700]))]
        made.append(
            (
                prompt,
                SamplingParams(
                    max_tokens=pick.choice([1, 3, 10, 40]),
                    temperature=pick.choice([0, 0.5, 1.0, 1.5]),
                    top_k=pick.choice([0, 1, 5, 50, 90]),
                    top_p=pick.choice([0.3, 0.9, 1.0]),
                    min_p=pick.choice([0.0, 0.1]),
                    repetition_penalty=pick.choice([1.0, 1.3]),
                    presence_penalty=pick.choice([0.0, 0.5]),
                    logit_bias=pick.choice([{}, {3: 5.0}]),
                    seed=pick.randrange(2**63),
                ),
            )
        )
    return made


def test_cached_equals_uncached_at_every_position(model):
    greedy = SamplingParams(max_tokens=60, temperature=0)
    prompt = [5, 17, 3, 96]
    got = alone(model, prompt, greedy)
    context = list(prompt)
    for token in got:
        logits = np.array(model(mx.array([context]))[0, -1])
        top_two = np.sort(logits)[-2:]
        assert top_two[1] - top_two[0] > 1e-3, "too close to tell"
        assert token == logits.argmax()
        context.append(token)
    assert len(got) == 60


def test_in_any_crowd_each_gets_the_text_it_gets_alone(model):
    asked = requests(64)
    expected = [alone(model, *request) for request in asked]
    engine, order, got, ids = Engine(model, 4), random.Random(1), {}, {}
    left = list(range(len(asked)))
    order.shuffle(left)
    strangers = []
    while left or engine.has_work:
        if left and order.random() < 0.4:
            i = left.pop()
            ids[engine.add(*asked[i])] = i
        if order.random() < 0.2:  # others come and go
            strangers.append(engine.add([1] * order.randrange(1, 400), SamplingParams(max_tokens=30)))
        if strangers and order.random() < 0.3:
            engine.cancel(strangers.pop(order.randrange(len(strangers))))
        for output in engine.step():
            got.setdefault(output.id, []).append(output)
    assert [tokens_of(got[id]) for id in sorted(ids, key=ids.get)] == expected
    assert engine.n_running == engine.n_waiting == 0


def test_every_slot_gives_the_same_text(model):
    engine = Engine(model, 40)  # more than are decoded in one pass
    params = SamplingParams(max_tokens=12, temperature=1.5, top_k=0, seed=5)
    ids = [engine.add([3, 1, 4, 1, 5], params) for _ in range(40)]
    outputs = run(engine, *ids)
    assert {tuple(tokens_of(outputs[id])) for id in ids} == {tuple(alone(model, [3, 1, 4, 1, 5], params))}


@pytest.mark.parametrize("width", [32, 64, 256])
def test_rows_decoded_together_have_the_same_bits(width):
    model = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=width))
    counts = equal_row_counts(model)
    row = mx.random.normal((1, width), key=mx.random.key(1))  # not the one it tried with
    for layer in (model.h[0].attn.c_attn, model.h[0].mlp.c_fc, model.wte.as_linear):
        results = [np.array(layer(mx.repeat(row, n, axis=0))) for n in counts]
        assert all((result == results[-1][0]).all() for result in results)


def test_prompts_of_one_shape_are_read_together_on_a_gpu(model, monkeypatch):
    monkeypatch.setattr(device, "on_gpu", lambda: True)  # its path, on this machine's kernels
    asked = [
        ([i] + [7, 11, 13] * n, SamplingParams(max_tokens=5, temperature=0)) for i, n in enumerate([6, 7, 6, 20, 90])
    ]
    expected = [alone(model, *request) for request in asked]
    engine, shapes = Engine(model, 8), []
    hidden, engine.model.hidden = engine.model.hidden, lambda t, **k: (shapes.append(t.shape), hidden(t, **k))[1]
    try:
        ids = [engine.add(*request) for request in asked]
        outputs = run(engine, *ids)
    finally:
        del engine.model.hidden
    assert (3, 24) in shapes
    assert [tokens_of(outputs[id]) for id in ids] == expected


@pytest.mark.skipif("own kernel" not in blas.name(called=True), reason="prompts are read one by one here")
@pytest.mark.cpu("a GPU reads all of a length together")
def test_prompts_read_together_on_a_cpu_have_the_bits_that_they_have_alone():
    model = GPT2(GPT2Config(block_size=256, vocab_size=97, n_layer=2, n_head=3, n_embd=96))
    pick, passes = random.Random(0), []
    prompts = [[pick.randrange(97) for _ in range(length)] for length in [18, 20, 24, 25] * 8 + [130, 150, 151]]
    engine = Engine(model, len(prompts), lambda ids, n_tokens: passes.append(len(ids)))
    params = SamplingParams(max_tokens=2, logprobs=0)
    ids = [engine.add(prompt, params) for prompt in prompts]
    together = run(engine, *ids)
    assert 512 // 24 in passes
    for id, prompt in zip(ids, prompts):
        single = Engine(model, 1)
        own = single.add(prompt, params)
        assert [o.tokens for o in together[id]] == [o.tokens for o in run(single, own)[own]]


@pytest.mark.parametrize("change", [{"dtype": mx.bfloat16}, {"bits": 8}])
def test_prompts_are_read_one_by_one_where_their_bits_might_change(change):
    model = GPT2(GPT2Config(block_size=64, vocab_size=97, n_layer=1, n_head=2, n_embd=64))
    model.quantize(change["bits"]) if "bits" in change else model.set_dtype(change["dtype"])
    assert alike_rows(model) == 0


def test_slots_take_an_eighth_of_the_memory(monkeypatch):
    slot = 2 * 12 * 768 * 1088 * 4  # 1,025 tokens in whole buckets of 64
    for memory, slots in ((10**6, 1), (8 * 5 * slot, 5), (8 * 5 * slot - 1, 4), (10**15, 32)):
        monkeypatch.setattr(device, "memory", lambda: memory)  # noqa: B023
        shape = GPT2Config(n_layer=12, n_head=12, n_embd=768)
        assert slots_that_fit(mx.float32, shape) == slots
        assert slots_that_fit(mx.float32, shape, shape) == max(1, min(32, memory // 8 // (2 * slot)))  # a draft model


def test_past_block_size_the_window_slides_over_its_newer_half(model):
    engine = Engine(model, 2)
    id = engine.add([7] * 290, SamplingParams(max_tokens=200, temperature=0))
    outputs = run(engine, id)[id]
    assert len(tokens_of(outputs)) == 200
    # full at 300: 301 tokens become the newest 150, then again each 151 tokens
    assert outputs[-1].slides == 2
    window = [7] * 290
    for token in tokens_of(outputs):
        logits = np.array(model(mx.array([window]))[0, -1])
        assert logits[token] > logits.max() - 1e-3
        window = [*window, token]
        if len(window) > 300:
            window = window[-150:]


def test_equal_prompts_share_their_prefill_and_differ_by_seed(model):
    prompt = [11, 22, 33] * 95
    engine = Engine(model, 4)
    params = [SamplingParams(max_tokens=8, temperature=1.0, top_k=0, seed=seed) for seed in range(4)]
    ids = [engine.add(prompt, p) for p in params]
    read = []
    hidden, engine.model.hidden = engine.model.hidden, lambda t, **k: (read.append(t.shape), hidden(t, **k))[1]
    try:
        outputs = run(engine, *ids)
    finally:
        del engine.model.hidden
    assert sum(width for _, width in read if width > 1) < 2 * 300 + 3 * 64  # not four times
    texts = [tokens_of(outputs[id]) for id in ids]
    assert len(set(map(tuple, texts))) == 4
    assert texts == [alone(model, prompt, p) for p in params]


def test_a_long_prompt_does_not_stall_the_others(model):
    engine = Engine(model, 4)
    first = engine.add([1], SamplingParams(max_tokens=20, temperature=0))
    engine.step()
    for _ in range(3):
        engine.add([2] * 300, SamplingParams(max_tokens=1))
    told = [any(output.id == first and output.tokens for output in engine.step()) for _ in range(4)]
    assert all(told)


def test_cancelling_frees_the_slot_and_touches_no_other(model):
    engine = Engine(model, 1)
    expected = alone(model, [4, 5], SamplingParams(max_tokens=5, seed=9))
    running = engine.add([1, 2], SamplingParams(max_tokens=1000, temperature=0))
    queued = engine.add([3], SamplingParams(max_tokens=5))
    last = engine.add([4, 5], SamplingParams(max_tokens=5, seed=9))
    engine.step()
    assert (engine.n_running, engine.n_waiting) == (1, 2)
    engine.cancel(queued)
    engine.cancel(running)
    engine.cancel(running)
    engine.cancel(12345)
    outputs = run(engine, last)
    assert tokens_of(outputs[last]) == expected
    assert not outputs.get(queued)


def test_texts_that_give_up_their_slot_go_on_as_if_they_had_not(model):
    crowd = [([i, 5, 6], SamplingParams(max_tokens=40, seed=i, temperature=1.0)) for i in range(4)]
    expected = [alone(model, *asked) for asked in crowd]
    engine = Engine(model, 2)
    ids = [engine.add(*asked, request=-1) for asked in crowd]
    outputs, small = {}, []
    for step in range(400):
        if step % 7 == 3 and len(small) < 6:
            small.append((engine.add([9, 9], SamplingParams(max_tokens=2, seed=step)), step))
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
            if output.finish_reason and output.id not in ids:
                assert step <= dict(small)[output.id] + 3, "a small request waited for a crowd"
    assert not engine.has_work and len(small) == 6
    assert [tokens_of(outputs[id]) for id in ids] == expected
    assert all(tokens_of(outputs[id]) == alone(model, [9, 9], SamplingParams(max_tokens=2, seed=s)) for id, s in small)


def test_before_each_pass_its_sequences_are_told(model):
    passes = []
    engine = Engine(model, 4, lambda ids, n_tokens: passes.append((ids, n_tokens)))
    first, second = engine.add([1] * 300, SamplingParams(max_tokens=2)), engine.add([2], SamplingParams(max_tokens=2))
    run(engine, first, second)
    assert passes[:4] == [([first], 128), ([second], 1), ([first], 128), ([second], 1)]
    assert ([first], 43) in passes


def test_logprobs_are_those_of_the_model(model):
    engine = Engine(model, 2)
    prompt = list(range(20, 60))
    id = engine.add(prompt, SamplingParams(max_tokens=2, temperature=0, logprobs=3, prompt_logprobs=True))
    outputs = run(engine, id)[id]
    drawn = [token for output in outputs for token in output.tokens]
    told = [*outputs[0].prompt, *drawn]
    text = [*prompt, *(token.id for token in drawn)]
    assert [token.id for token in told] == text
    assert told[0].logprob is None
    logits = model(mx.array([text]))[0]
    log_p = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    for i, token in enumerate(told[1:]):
        assert token.logprob == pytest.approx(log_p[i, token.id], abs=1e-4)
        best = np.argsort(-log_p[i])[:3]
        assert [id for id, _ in token.alternatives] == best.tolist()
    assert all(output.prompt == () for output in outputs[1:])


def test_max_tokens_zero_reads_the_prompt_only(model):
    engine = Engine(model, 2)
    id = engine.add([1, 2, 3], SamplingParams(max_tokens=0, logprobs=0, prompt_logprobs=True))
    (output,) = run(engine, id)[id]
    assert output.tokens == () and output.finish_reason == "length" and len(output.prompt) == 3


def test_the_end_of_a_text_ends_the_sequence(model):
    model_50257 = GPT2(GPT2Config(block_size=16, n_layer=1, n_head=1, n_embd=8))
    engine = Engine(model_50257, 2, encoding=tokenizer.load())
    id = engine.add([1], SamplingParams(temperature=0, logit_bias={tokenizer.EOT: 100.0}))
    (output,) = run(engine, id)[id]
    assert output.tokens == () and output.finish_reason == "stop" and output.end is None
    told = engine.add([1], SamplingParams(temperature=0, logit_bias={tokenizer.EOT: 100.0}, logprobs=0))
    (output,) = run(engine, told)[told]
    assert output.end.id == tokenizer.EOT and output.end.logprob == pytest.approx(-10.8, abs=2)


@pytest.mark.parametrize(
    ("prompt", "message"), [([], "has no tokens"), ([97], "token 97 is out of range"), ([-1], "-1")]
)
def test_bad_prompts_are_refused(model, prompt, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, 1).add(prompt, SamplingParams())


def test_a_token_is_waited_for_once(model, monkeypatch):
    engine, waits, evaluate = Engine(model, n_slots=4), [], mx.eval
    for seed in range(3):
        engine.add([1, 2, 3], SamplingParams(max_tokens=5, seed=seed, logprobs=seed or None))
    engine.step()
    monkeypatch.setattr(mx, "eval", lambda *arrays: waits.append(len(arrays)) or evaluate(*arrays))
    engine.step()
    assert len(waits) == 1


def test_a_pass_is_built_once_for_each_shape(model, monkeypatch):
    passes, hidden = [], GPT2.hidden
    monkeypatch.setattr(GPT2, "hidden", lambda *args, **kwargs: passes.append(1) or hidden(*args, **kwargs))
    engine = Engine(model, n_slots=2)
    engine.add([1, 2, 3], SamplingParams(max_tokens=30, seed=0))
    while engine.has_work:
        engine.step()
    assert len(passes) == 2  # one for the prompt, one for all tokens


def test_warming_up_draws_in_every_way(model, monkeypatch):
    drawn, way_of = set(), sampling._way
    monkeypatch.setattr(sampling, "_way", lambda *args: drawn.add(way_of(*args)) or way_of(*args))
    Engine(model, n_slots=8).warm_up()
    assert {way.__name__ for way, *_ in drawn} == {"_from_all", "_from_top_k", "_from_top_p"}


def test_a_gpu_decodes_any_number_of_rows(model, monkeypatch):
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    assert equal_row_counts(model) == tuple(range(1, 33))
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    assert equal_row_counts(model) == (1, 2, 4, 8, 16, 32)


def test_a_text_gives_up_its_slot_though_it_has_read_nothing(model):
    """Of a crowd that has all slots of a new engine; the others wait for the first to read their prompt."""
    engine, params = Engine(model, 16), SamplingParams(max_tokens=4, temperature=0)
    crowd = [engine.add([5] * 40, params, request=1) for _ in range(16)]
    begun = engine.step()
    late = engine.add([6], params, request=2)
    texts = run(engine, *crowd, late)
    assert all(
        tokens_of([o for o in begun if o.id == id] + texts[id]) == alone(model, [5] * 40, params) for id in crowd
    )
    assert tokens_of(texts[late]) == alone(model, [6], params)


def test_an_engine_that_nobody_has_frees_its_memory_at_once(model):
    """Not when Python looks for cycles: its cache is large."""
    gc.disable()
    try:
        engine = Engine(model, 2, n_prefixes=2, speculate=2, draft_model=model)
        run(engine, engine.add([5] * 40, SamplingParams(max_tokens=9)))
        left = weakref.ref(engine), weakref.ref(engine._decoder)
        del engine
        assert [each() for each in left] == [None, None]
    finally:
        gc.enable()


def test_only_the_passes_used_last_are_kept(model, monkeypatch):
    monkeypatch.setattr(decoder, "MOST_PASSES", 2)
    engine = Engine(model, 4)
    for n in (1, 2, 4, 1):
        run(engine, *(engine.add([5], SamplingParams(max_tokens=3)) for _ in range(n)))
        assert 1 <= len(engine._decoder._passes) <= 2
