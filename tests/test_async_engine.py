"""The engine's process seen from asyncio: it may end at any moment, and nobody notices more than a pause."""

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from fake_engine import POISON, SCRIPT, FakeEngine, ThreadProcess
from patience import PATIENCE

from gpt2_mlx.generation.outputs import Token
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.serving import async_engine, pulse
from gpt2_mlx.serving.async_engine import AsyncEngine
from gpt2_mlx.serving.submission import EngineFailed, QueueFull, Refused, Unavailable


def job(max_tokens: int = 5, seed: int = 0, prompt: tuple[int, ...] = (1, 2)):
    return list(prompt), SamplingParams(max_tokens=max_tokens, seed=seed)


async def ids_of(submission) -> dict[int, list[int]]:
    """What a submission brings, by job."""
    texts = {}
    async for number, output in submission:
        texts.setdefault(number, []).extend(token.id for token in output.tokens)
    return texts


def script(seed: int, n: int) -> list[int]:
    return [SCRIPT[(seed + i) % len(SCRIPT)] for i in range(n)]


async def until(claim) -> None:
    """Wait until a claim holds."""
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(fake: FakeEngine):
    """An AsyncEngine that is loaded."""
    engine = AsyncEngine(lambda checkpoint: ThreadProcess(fake), fake.checkpoint, max_queue=8)
    engine.start()
    try:
        await until(lambda: not engine.closed)
        yield engine
    finally:
        fake.gate.set()
        await engine.stop()


@pytest.fixture
def fake():
    return FakeEngine()


@pytest.fixture
def served(fake):
    """Runs a test's coroutine with an engine."""

    def run(test):
        async def main():
            async with running(fake) as engine:
                return await test(engine)

        return asyncio.run(main())

    return run


def test_each_request_gets_its_own_tokens(served):
    async def test(engine):
        submissions = [engine.submit([job(n, seed), job(n + 1, seed)]) for seed, n in enumerate((3, 1, 7))]
        return await asyncio.gather(*map(ids_of, submissions))

    assert served(test) == [{0: script(s, n), 1: script(s, n + 1)} for s, n in enumerate((3, 1, 7))]


def test_beyond_the_queue_requests_are_refused_and_the_others_served(served, fake):
    async def test(engine):
        fake.gate.clear()
        taken = [engine.submit([job()]) for _ in range(8)]
        assert "queue is full" in engine.unready
        with pytest.raises(QueueFull, match="8 sequences wait already; at most 8 may"):
            engine.submit([job()])
        fake.gate.set()
        assert await asyncio.gather(*map(ids_of, taken)) == [{0: script(0, 5)}] * 8
        assert await ids_of(engine.submit([job()])) == {0: script(0, 5)}

    served(test)


def test_leaving_a_submission_frees_its_slots_and_touches_no_other(served, fake):
    async def test(engine):
        other = engine.submit([job(40)])
        with engine.submit([job(1_000_000), job(1_000_000)]) as submission:
            await anext(submission)
        with engine.submit([job(1_000_000)]):
            pass  # left before it began
        assert await ids_of(other) == {0: script(0, 40)}
        await until(lambda: engine.n_running == engine.n_waiting == 0)
        await until(lambda: fake.cancelled == [2, 3, 4])

    served(test)


def test_one_cancelled_job_leaves_its_siblings(served):
    async def test(engine):
        submission = engine.submit([job(1_000_000), job(30)])
        submission.cancel(0)
        submission.cancel(0)
        return await ids_of(submission)

    assert served(test) == {1: script(0, 30)}


@pytest.mark.parametrize("dies_at", [1, 2, 7, 12])
def test_a_process_that_dies_costs_nobody_a_token(served, fake, dies_at):
    async def test(engine):
        await until(lambda: fake.begun == 1)
        fake.dies_at = dies_at
        restarts = []
        engine.on_restart = lambda: restarts.append(engine.unready)
        submissions = [engine.submit([job(10 + i, seed=i), job(3, seed=i)]) for i in range(3)]  # more than the slots
        texts = await asyncio.gather(*map(ids_of, submissions))
        assert texts == [{0: script(i, 10 + i), 1: script(i, 3)} for i in range(3)]
        assert len(restarts) == 1 and "another is starting" in restarts[0]
        assert engine.unready is None and fake.begun == 2

    served(test)


def test_a_process_that_hangs_is_taken_for_dead(served, fake, monkeypatch):
    monkeypatch.setattr(pulse, "SILENCE", 0.3)

    async def test(engine):
        submission = engine.submit([job(20)])
        await anext(submission)
        fake.gate.clear()  # the next step takes for ever
        await until(lambda: fake.begun == 2)
        fake.gate.set()
        return await ids_of(submission)

    assert served(test) == {0: script(0, 20)[1:]}


def test_a_poisonous_request_alone_is_given_up(served, fake):
    async def test(engine):
        beside = [engine.submit([job(30, seed=i)]) for i in range(3)]
        await anext(beside[0])
        poisoned = engine.submit([job(), job(prompt=(1, POISON))])
        after = engine.submit([job(4)])
        with pytest.raises(EngineFailed):
            await ids_of(poisoned)
        texts = await asyncio.gather(*map(ids_of, [*beside, after]))
        assert texts == [{0: script(0, 30)[1:]}, {0: script(1, 30)}, {0: script(2, 30)}, {0: script(0, 4)}]
        assert fake.begun == 3 and engine.unready is None

    served(test)


def test_a_request_whose_text_comes_again_otherwise_leaves_no_slot_taken(served, fake, monkeypatch):
    monkeypatch.setattr(fake, "_token", lambda id, params: Token(id + fake.begun))

    async def test(engine):
        fake.dies_at = 4
        with pytest.raises(EngineFailed, match="as it was"):
            await ids_of(engine.submit([job(10**6), job(10**6, seed=1)]))
        await until(lambda: len(fake.cancelled) == 2 and engine.n_running == 0)

    served(test)


def test_an_idle_process_that_dies_is_replaced_too(served, fake):
    async def test(engine):
        fake.dies_at = 1
        first = engine.submit([job(1)])
        assert await ids_of(first) == {0: script(0, 1)}
        assert await ids_of(engine.submit([job()])) == {0: script(0, 5)}

    served(test)


def test_a_job_that_the_engine_refuses_ends_its_request_only(served):
    async def test(engine):
        with pytest.raises(Refused, match="out of range"):
            await ids_of(engine.submit([job(), job(prompt=(10**6,))]))
        assert await ids_of(engine.submit([job()])) == {0: script(0, 5)}
        await until(lambda: engine.n_running == engine.n_waiting == 0)

    served(test)


def test_a_request_is_answered_by_one_checkpoint_and_knows_which(served, fake):
    async def test(engine):
        first = engine.submit([job(50)])
        engine.swap(Path("verse/step-00000009"))
        await until(lambda: engine.checkpoint == Path("verse/step-00000009"))
        second = engine.submit([job()])
        named = engine.submit([job()], Path("verse/step-00000002"))
        await asyncio.gather(*map(ids_of, (first, second, named)))
        return [submission.checkpoint.name for submission in (first, second, named)]

    assert served(test) == ["step-00000001", "step-00000009", "step-00000002"]


def test_a_checkpoint_that_cannot_be_loaded_costs_nobody_but_who_named_it(served, fake):
    async def test(engine):
        fake.unloadable.add("step-00000009")
        engine.swap(Path("verse/step-00000009"))
        with pytest.raises(Refused, match="no such checkpoint"):
            await ids_of(engine.submit([job()], Path("verse/step-00000009")))
        assert await ids_of(engine.submit([job()])) == {0: script(0, 5)}
        assert engine.checkpoint == Path("verse/step-00000001") and engine.swapping is None and engine.unready is None

    served(test)


def test_draining_finishes_what_was_taken_and_takes_no_more(served):
    async def test(engine):
        submission = engine.submit([job(20)])
        engine.drain(PATIENCE)
        with pytest.raises(Unavailable, match="draining"):
            engine.submit([job()])
        assert engine.unready == "the server is draining"
        return await ids_of(submission)

    assert served(test) == {0: script(0, 20)}


def test_a_second_call_does_not_prolong_the_drain(served):
    async def test(engine):
        submission = engine.submit([job(10**9)])
        engine.drain(0.1)
        engine.drain(PATIENCE)
        with pytest.raises(Unavailable, match="has stopped"):
            await ids_of(submission)

    served(test)


def test_those_who_wait_are_told_when_it_stops(served):
    async def test(engine):
        submission = engine.submit([job(10**9)])
        await anext(submission)
        await engine.stop()
        with pytest.raises(Unavailable, match="has stopped"):
            await ids_of(submission)

    served(test)


def test_while_it_loads_it_takes_nothing(fake):
    async def main():
        engine = AsyncEngine(lambda checkpoint: ThreadProcess(fake), fake.checkpoint, max_queue=8)
        assert engine.unready == "the model is loading"
        with pytest.raises(Unavailable, match="loading"):
            engine.submit([job()])
        engine.start()
        await until(lambda: engine.unready is None)
        await engine.stop()

    asyncio.run(main())


def test_a_failure_to_load_is_told(fake):
    fake.unloadable.add("step-00000001")

    async def main():
        failed = asyncio.Event()
        engine = AsyncEngine(lambda checkpoint: ThreadProcess(fake), fake.checkpoint, max_queue=8)
        engine.start(on_failure=failed.set)
        await asyncio.wait_for(failed.wait(), PATIENCE)
        assert engine.failure == "no such checkpoint"
        assert engine.unready == "the engine could not be started: no such checkpoint"
        await engine.stop()

    asyncio.run(main())


def test_a_process_that_cannot_start_again_costs_those_who_wait_and_is_tried_again(served, fake, monkeypatch):
    monkeypatch.setattr(async_engine, "LONGEST_WAIT", 0.05)

    async def test(engine):
        submission = engine.submit([job(10**9)])
        await anext(submission)
        fake.unloadable.add("step-00000001")
        fake.killed.set()
        with pytest.raises(Unavailable, match="the engine cannot be started: no such checkpoint"):
            await ids_of(submission)
        assert "no such checkpoint" in engine.unready
        fake.unloadable.clear()
        await until(lambda: engine.unready is None)
        assert await ids_of(engine.submit([job()])) == {0: script(0, 5)}

    served(test)


def test_a_process_for_which_there_is_no_memory_is_started_later(fake, monkeypatch):
    monkeypatch.setattr(async_engine, "LONGEST_WAIT", 0.05)
    refusals = [OSError("no memory"), BrokenPipeError("it ended at once")]
    restarts = []

    def launch(checkpoint):
        if fake.begun and refusals:
            raise refusals.pop()
        return ThreadProcess(fake)

    async def main():
        engine = AsyncEngine(launch, fake.checkpoint, max_queue=8)
        engine.on_restart = lambda: restarts.append(1)
        engine.start()
        await until(lambda: not engine.closed)
        submission = engine.submit([job(10**9)])
        await anext(submission)
        fake.killed.set()
        with pytest.raises(Unavailable, match="the engine cannot be started: it ended at once"):
            await ids_of(submission)
        await until(lambda: engine.unready is None)
        assert await ids_of(engine.submit([job()])) == {0: script(0, 5)}
        assert not refusals and len(restarts) == 1
        await engine.stop()

    asyncio.run(main())


def test_a_checkpoint_whose_loading_ends_the_process_is_not_loaded_again_at_once(served, fake):
    async def test(engine):
        fake.deadly.add("step-00000009")
        submission = engine.submit([job(50)])
        engine.swap(Path("verse/step-00000009"))
        assert await ids_of(submission) == {0: script(0, 50)}
        assert fake.begun == 2 and engine.swapping is None and engine.unready is None

    served(test)


def test_a_swap_while_a_process_starts_is_not_lost(served, fake):
    async def test(engine):
        engine.on_restart = lambda: engine.swap(Path("verse/step-00000009"))
        fake.dies_at = 3
        await ids_of(engine.submit([job()]))
        await until(lambda: engine.checkpoint == Path("verse/step-00000009"))
        assert engine.swapping is None

    served(test)
