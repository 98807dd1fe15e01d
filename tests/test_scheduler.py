from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.generation.scheduler import CHUNK, Scheduler, Sequence, Status

BLOCK_SIZE = 1024


def sequence(id: int, prompt_length: int = 3, max_tokens: int = 5, request: int | None = None) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens)
    return Sequence(id, [0] * prompt_length, params, BLOCK_SIZE, id if request is None else request)


def schedule(scheduler: Scheduler) -> list[Sequence]:
    """The beginning of a step; returns what is to be prefilled."""
    scheduler.make_room()
    scheduler.admit()
    return scheduler.prefill()


def play(scheduler: Scheduler, arrivals: dict[int, list[Sequence]], cancels: dict[int, list[int]]) -> list[Sequence]:
    """Run steps as the engine would, tokens being zeros; returns the sequences in the order they ended."""
    ended: list[Sequence] = []
    everyone = {s.id: s for group in arrivals.values() for s in group}

    def end(s: Sequence, reason: str) -> None:
        if s.status is not Status.FINISHED:
            ended.append(s)
        scheduler.finish(s, reason)

    step = 0
    while step <= max([*arrivals, *cancels, 0]) or scheduler.waiting or scheduler.running:
        for s in arrivals.get(step, []):
            scheduler.add(s)
        for id in cancels.get(step, []):
            if everyone[id].status is not Status.WAITING or id in scheduler.waiting:
                end(everyone[id], "cancelled")
        prefill = schedule(scheduler)
        assert len(scheduler.running) <= 3, "never more rows than slots"
        assert len({s.slot for s in scheduler.running.values()}) == len(scheduler.running)
        assert sum(s.chunk for s in prefill[:-1]) < scheduler.prefill_budget
        for s in prefill:
            s.cached += s.chunk
        assert prefill or scheduler.decoding or not scheduler.waiting, "a step that does nothing"
        for s in scheduler.decoding:
            s.cached += 1
            s.append(0)
            if len(s.generated) == s.params.max_tokens:
                end(s, "length")
        step += 1
        assert step < 10_000, "somebody starves"
    return ended


SEQUENCES = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 1500), st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=12
)


@given(SEQUENCES, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 11)), max_size=5))
def test_every_sequence_ends_once_and_none_starves(asked, cancelled):
    arrivals, cancels = {}, {}
    for id, (step, length, max_tokens, request) in enumerate(asked):
        arrivals.setdefault(step, []).append(sequence(id, length, max_tokens, request))
    for step, id in cancelled:
        if id < len(asked):
            cancels.setdefault(step, []).append(id)
    ended = play(Scheduler(n_slots=3), arrivals, cancels)
    assert Counter(s.id for s in ended).keys() == set(range(len(asked)))
    assert all(count == 1 for count in Counter(s.id for s in ended).values())


@pytest.mark.parametrize("request_of", [lambda id: id, lambda id: 0], ids=["requests of one", "one request"])
def test_first_come_first_served(request_of):
    scheduler = Scheduler(n_slots=2)
    made = [sequence(id, request=request_of(id)) for id in range(5)]
    for s in made:
        scheduler.add(s)
    schedule(scheduler)
    assert [s.status for s in made] == [Status.RUNNING] * 2 + [Status.WAITING] * 3
    scheduler.finish(made[0], "length")
    schedule(scheduler)
    assert made[2].slot == made[0].slot and made[3].status is Status.WAITING


def test_a_long_prompt_is_read_in_chunks_beside_those_that_decode():
    scheduler = Scheduler(n_slots=3, prefill_budget=CHUNK)
    short, long, other = sequence(0, 1), sequence(1, 1000, request=1), sequence(2, 1000, request=1)
    for s in (short, long, other):
        scheduler.add(s)
    for cut in (*range(CHUNK, 999, CHUNK), 999):  # the last token is decoded
        prefill = schedule(scheduler)
        assert prefill[0] is long and scheduler.decoding == [short]
        long.cached += long.chunk
        assert long.cached == cut


def test_a_crowd_makes_room_for_whoever_comes():
    scheduler = Scheduler(n_slots=4)
    crowd = [sequence(id, request=0) for id in range(9)]
    for s in crowd:
        scheduler.add(s)
    schedule(scheduler)
    assert all(s.status is Status.RUNNING for s in crowd[:4])
    late, later = sequence(10, request=1), sequence(11, request=2)
    scheduler.add(late)
    assert scheduler.make_room() is crowd[3] and scheduler.admit() == [late]  # the newest gives up its slot
    scheduler.add(later)
    schedule(scheduler)
    assert Counter(s.request for s in scheduler.running.values()) == {0: 2, 1: 1, 2: 1}
    for s in (late, later):
        scheduler.finish(s, "length")
    assert scheduler.admit() == crowd[2:4]  # what was parked goes on before what has not begun
    assert schedule(scheduler) and scheduler.make_room() is None


def test_two_crowds_share_the_slots():
    scheduler = Scheduler(n_slots=4)
    for id in range(20):
        scheduler.add(sequence(id, request=id % 2))
    for _ in range(5):
        schedule(scheduler)
        assert Counter(s.request for s in scheduler.running.values()) == {0: 2, 1: 2}


def test_prompts_are_read_by_turns():
    scheduler = Scheduler(n_slots=8, prefill_budget=CHUNK)
    crowd, late = [sequence(id, 1000, request=0) for id in range(4)], sequence(9, 1000, request=1)
    for s in crowd:
        scheduler.add(s)
    assert schedule(scheduler) == crowd[:1]
    scheduler.add(late)
    read = []
    for _ in range(6):
        (s,) = schedule(scheduler)
        s.cached += s.chunk
        read.append(s.request)
    assert read == [1, 0, 1, 0, 1, 0]


def test_ending_twice_does_nothing():
    scheduler = Scheduler(n_slots=1)
    first, second = sequence(0), sequence(1)
    scheduler.add(first)
    schedule(scheduler)
    scheduler.finish(first, "length")
    scheduler.add(second)
    schedule(scheduler)
    scheduler.finish(first, "cancelled")
    assert first.finish_reason == "length" and scheduler.running == {0: second}


def test_a_full_window_keeps_its_newer_half():
    s = Sequence(0, [1, 2, 3], SamplingParams(), block_size=4)
    s.cached = 3
    s.append(4)
    assert s.context == [1, 2, 3, 4] and s.slides == 0
    s.append(5)
    assert s.context == [4, 5] and s.cached == 0 and s.slides == 1
    assert Sequence(0, list(range(9)), SamplingParams(), block_size=4).context == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1), ("top_p", 1.1), ("min_p", -0.1), ("top_k", -1), ("seed", -1), ("repetition_penalty", 0)],
)
def test_parameters_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; it must be at least"):
        SamplingParams(**{field: value})
