"""The thread around the engine, and a small engine to test it with."""

import asyncio
import itertools
import threading
import time
from collections import deque
from pathlib import Path

import pytest

from gpt2_mlx import tokenizer
from gpt2_mlx.generation.engine import Output, Token
from gpt2_mlx.generation.scheduler import SamplingParams
from gpt2_mlx.serving.async_engine import AsyncEngine
from gpt2_mlx.serving.stream import QueueFull, Refused, StepFailed, Unavailable

ENCODING = tokenizer.load()
SCRIPT = ENCODING.encode_ordinary(" To be — or not: “naïve” 🎭🙂? It costs 3.14 ducats. 'Tis so!\nAnd on, ")
POISON = 666  # a step with a prompt that holds this token raises


class FakeEngine:
    """Engines' interface; every text is the script, over and over, from the place that the seed says."""

    block_size, vocab_size = 64, tokenizer.VOCAB_SIZE

    def __init__(self, n_slots: int = 4, seconds: float = 0.0):
        self.n_slots = n_slots
        self.seconds = seconds  # per step
        self.gate = threading.Event()  # steps wait for it
        self.gate.set()
        self.waiting, self.running, self.cancelled = deque(), {}, []
        self.broken = False
        self.checkpoint = Path("verse/step-00000001")
        self.threads = set()
        self.ids = itertools.count()

    def add(self, prompt, params, checkpoint):
        self.threads.add(threading.get_ident())
        if max(prompt) >= self.vocab_size:
            raise ValueError("a token is out of range")
        id = next(self.ids)
        self.waiting.append((id, prompt, params))
        return id

    def step(self):
        assert self.gate.wait(30)
        time.sleep(self.seconds)
        while self.waiting and len(self.running) < self.n_slots:
            id, prompt, params = self.waiting.popleft()
            self.running[id] = [prompt, params, 0]
        if self.broken or any(POISON in prompt for prompt, _, _ in self.running.values()):
            raise RuntimeError("poisoned")
        return [self._output(id) for id in list(self.running)]

    def _output(self, id):
        prompt, params, n = self.running[id]
        self.running[id][2] += 1
        tokens = ()
        if params.max_tokens:
            tokens = (self._token(SCRIPT[(params.seed + n) % len(SCRIPT)], params),)
        done = n + 1 >= params.max_tokens
        if done:
            del self.running[id]
        noted = ()
        if params.prompt_logprobs and not n:
            context = prompt[-self.block_size :]
            noted = (Token(context[0]), *(self._token(token, params) for token in context[1:]))
        return Output(id, tokens, noted, "length" if done else None)

    def _token(self, id, params):
        if params.logprobs is None:
            return Token(id)
        return Token(id, -0.5, tuple((id + i, -0.5 - i) for i in range(params.logprobs)))

    def swap(self, checkpoint):
        self.checkpoint = checkpoint

    def fail_step(self):
        failed, self.running = list(self.running), {}
        return failed

    def cancel(self, id):
        self.cancelled.append(id)
        self.running.pop(id, None)
        self.waiting = deque(job for job in self.waiting if job[0] != id)

    def warm_up(self):
        if self.broken:
            raise RuntimeError("broken")

    has_work = property(lambda self: bool(self.waiting or self.running))
    n_waiting = property(lambda self: len(self.waiting))
    n_running = property(lambda self: len(self.running))


def eventually(claim, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def job(max_tokens: int = 5, seed: int = 0, prompt: tuple[int, ...] = (1, 2)):
    return list(prompt), SamplingParams(max_tokens=max_tokens, seed=seed)


async def ids_of(stream) -> dict[int, list[int]]:
    """What a stream brings, by job."""
    texts = {}
    async for number, output in stream:
        texts.setdefault(number, []).extend(token.id for token in output.tokens)
    return texts


def script(seed: int, n: int) -> list[int]:
    return [SCRIPT[(seed + i) % len(SCRIPT)] for i in range(n)]


@pytest.fixture
def fake():
    return FakeEngine()


@pytest.fixture
def engine(fake):
    engine = AsyncEngine(lambda: fake, max_queue=8)
    engine.start()
    assert engine.wait_until_loaded(20)
    yield engine
    fake.gate.set()
    engine.stop(20)
    assert engine.failure is None


def test_each_request_gets_its_own_tokens(engine, fake):
    async def main():
        streams = [engine.submit([job(n, seed), job(n + 1, seed)]) for seed, n in enumerate((3, 1, 7))]
        return await asyncio.gather(*map(ids_of, streams))

    brought = asyncio.run(main())
    assert brought == [{0: script(s, n), 1: script(s, n + 1)} for s, n in enumerate((3, 1, 7))]
    assert len(fake.threads) == 1 and threading.get_ident() not in fake.threads


def test_beyond_the_queue_requests_are_refused_and_the_others_served(engine, fake):
    async def main():
        fake.gate.clear()
        running = [engine.submit([job()]) for _ in range(4)]
        await asyncio.to_thread(eventually, lambda: engine.n_waiting == 4)  # given to the engine, which stands still
        waiting = [engine.submit([job()]) for _ in range(4)]
        assert "queue is full" in engine.unready
        with pytest.raises(QueueFull, match="8 sequences wait already; at most 8 may"):
            engine.submit([job()])
        fake.gate.set()
        texts = await asyncio.gather(*map(ids_of, running + waiting))
        assert texts == [{0: script(0, 5)}] * 8
        assert await ids_of(engine.submit([job()])) == {0: script(0, 5)}

    asyncio.run(main())


def test_leaving_a_stream_frees_its_slots_and_touches_no_other(engine, fake):
    async def main():
        other = engine.submit([job(40)])
        with engine.submit([job(1_000_000), job(1_000_000)]) as stream:
            await anext(stream)
        with engine.submit([job(1_000_000)]):
            pass  # left before it began
        assert await ids_of(other) == {0: script(0, 40)}
        await asyncio.to_thread(eventually, lambda: engine.n_running == engine.n_waiting == 0)

    asyncio.run(main())
    assert fake.cancelled == [1, 2, 3]


def test_one_cancelled_job_leaves_its_siblings(engine):
    async def main():
        stream = engine.submit([job(1_000_000), job(30)])
        stream.cancel(0)
        stream.cancel(0)
        return await ids_of(stream)

    assert asyncio.run(main()) == {1: script(0, 30)}


def test_a_step_that_raises_fails_its_requests_and_the_next_are_served(engine, fake):
    async def main():
        fake.gate.clear()
        first = engine.submit([job(1)])
        await asyncio.to_thread(eventually, lambda: fake.waiting)  # its step has begun: what comes now is together
        poisoned = engine.submit([job(), job(prompt=(1, POISON))])
        beside = engine.submit([job(), job()])  # the slots are full
        waiting = engine.submit([job()])
        fake.gate.set()
        assert await ids_of(first) == {0: script(0, 1)}
        for stream in (poisoned, beside):
            with pytest.raises(StepFailed):
                await ids_of(stream)
        return await ids_of(waiting)

    assert asyncio.run(main()) == {0: script(0, 5)}
    assert engine.unready is None


def test_readiness_tells_of_a_failed_step_until_the_engine_works_again(engine, fake, monkeypatch):
    monkeypatch.setattr("gpt2_mlx.serving.async_engine.PROBE_SECONDS", 0.05)

    async def main():
        fake.broken = True
        with pytest.raises(StepFailed):
            await ids_of(engine.submit([job()]))

    asyncio.run(main())
    assert engine.unready == "the last step failed: RuntimeError"
    fake.broken = False
    eventually(lambda: engine.unready is None)


def test_a_request_whose_output_was_lost_in_a_failed_step_fails(engine, fake):
    async def main():
        fake.fail_step = lambda: fake.running.clear() or []
        with pytest.raises(StepFailed):
            await ids_of(engine.submit([job(prompt=(POISON,))]))

    asyncio.run(main())


def test_a_job_that_the_engine_refuses_ends_its_request_only(engine, fake):
    async def main():
        with pytest.raises(Refused, match="out of range"):
            await ids_of(engine.submit([job(), job(prompt=(10**6,))]))
        assert await ids_of(engine.submit([job()])) == {0: script(0, 5)}

    asyncio.run(main())
    assert fake.n_running == fake.n_waiting == 0


def test_a_request_is_answered_by_one_checkpoint_and_knows_which(engine, fake):
    async def main():
        fake.gate.clear()
        first = engine.submit([job()])
        await asyncio.to_thread(eventually, lambda: fake.waiting)
        engine.swap(Path("verse/step-00000009"))
        second = engine.submit([job()])
        named = engine.submit([job()], Path("verse/step-00000002"))
        fake.gate.set()
        await asyncio.gather(*map(ids_of, (first, second, named)))
        return [stream.checkpoint.name for stream in (first, second, named)]

    assert asyncio.run(main()) == ["step-00000001", "step-00000009", "step-00000002"]
    assert engine.checkpoint == Path("verse/step-00000009")


def test_a_checkpoint_that_cannot_be_loaded_costs_nobody_but_who_named_it(engine, fake):
    def fails(*_):
        raise MemoryError

    async def main():
        add, fake.swap = fake.add, fails
        engine.swap(Path("verse/step-00000009"))
        fake.add = fails
        with pytest.raises(StepFailed):
            await ids_of(engine.submit([job()]))
        fake.add = add
        assert await ids_of(engine.submit([job()])) == {0: script(0, 5)}

    asyncio.run(main())
    assert engine.checkpoint == Path("verse/step-00000001") and engine.unready is None


def test_draining_finishes_what_was_taken_and_takes_no_more(engine, fake):
    async def main():
        stream = engine.submit([job(20)])
        engine.drain(20)
        with pytest.raises(Unavailable, match="draining"):
            engine.submit([job()])
        assert engine.unready == "the server is draining"
        return await ids_of(stream)

    assert asyncio.run(main()) == {0: script(0, 20)}


def test_draining_has_a_limit(fake):
    engine = AsyncEngine(lambda: fake, max_queue=8)
    engine.start()
    engine.wait_until_loaded(20)

    async def main():
        stream = engine.submit([job(10**9)])
        await anext(stream)
        engine.drain(0.1)
        with pytest.raises(Unavailable, match="has stopped"):
            await ids_of(stream)

    asyncio.run(main())
    engine.stop(20)


def test_stopping_tells_those_who_wait(fake):
    engine = AsyncEngine(lambda: fake, max_queue=8)
    engine.start()
    engine.wait_until_loaded(20)

    async def main():
        stream = engine.submit([job(10**9)])
        await anext(stream)
        await asyncio.to_thread(engine.stop, 20)
        with pytest.raises(Unavailable, match="has stopped"):
            await ids_of(stream)

    asyncio.run(main())


def test_while_it_loads_it_takes_nothing(fake):
    loading = threading.Event()
    engine = AsyncEngine(lambda: loading.wait(20) and fake, max_queue=8)
    engine.start()
    assert engine.unready == "the model is loading"

    async def main():
        with pytest.raises(Unavailable, match="loading"):
            engine.submit([job()])

    asyncio.run(main())
    loading.set()
    eventually(lambda: engine.unready is None)
    engine.stop(20)


def test_a_failure_to_load_is_told():
    def build():
        raise ValueError("no such checkpoint")

    failed = threading.Event()
    engine = AsyncEngine(build, max_queue=8)
    engine.start(on_failure=failed.set)
    assert failed.wait(20)
    assert str(engine.failure) == "no such checkpoint"
    assert engine.unready == "the engine ended: ValueError"
