"""The thread around the engine."""

import asyncio
import threading
from pathlib import Path

import pytest
from fake_engine import POISON, SCRIPT, FakeEngine
from patience import PATIENCE, eventually

from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.serving.async_engine import AsyncEngine
from gpt2_mlx.serving.submission import QueueFull, Refused, StepFailed, Unavailable


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
    eventually(lambda: not engine.closed)
    yield engine
    fake.gate.set()
    engine.stop(PATIENCE)
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
        engine.drain(PATIENCE)
        with pytest.raises(Unavailable, match="draining"):
            engine.submit([job()])
        assert engine.unready == "the server is draining"
        return await ids_of(stream)

    assert asyncio.run(main()) == {0: script(0, 20)}


@pytest.mark.parametrize("end", [lambda engine: engine.drain(0.1), lambda engine: engine.stop(PATIENCE)])
def test_those_who_wait_are_told_when_it_stops_or_has_drained_long_enough(engine, end):
    async def main():
        stream = engine.submit([job(10**9)])
        await anext(stream)
        await asyncio.to_thread(end, engine)
        with pytest.raises(Unavailable, match="has stopped"):
            await ids_of(stream)

    asyncio.run(main())


def test_while_it_loads_it_takes_nothing(fake):
    loading = threading.Event()
    engine = AsyncEngine(lambda: loading.wait(PATIENCE) and fake, max_queue=8)
    engine.start()
    assert engine.unready == "the model is loading"

    async def main():
        with pytest.raises(Unavailable, match="loading"):
            engine.submit([job()])

    asyncio.run(main())
    loading.set()
    eventually(lambda: engine.unready is None)
    engine.stop(PATIENCE)


def test_a_failure_to_load_is_told():
    def build():
        raise ValueError("no such checkpoint")

    failed = threading.Event()
    engine = AsyncEngine(build, max_queue=8)
    engine.start(on_failure=failed.set)
    assert failed.wait(PATIENCE)
    assert str(engine.failure) == "no such checkpoint"
    assert engine.unready == "the engine ended: ValueError"
