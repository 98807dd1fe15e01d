from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.generation.scheduler import CHUNK, Scheduler, Sequence, Status

BLOCK_SIZE = 1024


def sequence(id: int, prompt_length: int = 3, max_tokens: int = 5) -> Sequence:
    return Sequence(id, [0] * prompt_length, SamplingParams(max_tokens=max_tokens), BLOCK_SIZE)


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
            if everyone[id].status is not Status.WAITING or everyone[id] in scheduler.waiting:
                end(everyone[id], "cancelled")
        prefill = scheduler.schedule()
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


SEQUENCES = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 1500), st.integers(1, 40)), min_size=1, max_size=12)


@given(SEQUENCES, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 11)), max_size=5))
def test_every_sequence_ends_once_and_none_starves(asked, cancelled):
    arrivals, cancels = {}, {}
    for id, (step, length, max_tokens) in enumerate(asked):
        arrivals.setdefault(step, []).append(sequence(id, length, max_tokens))
    for step, id in cancelled:
        if id < len(asked):
            cancels.setdefault(step, []).append(id)
    ended = play(Scheduler(n_slots=3), arrivals, cancels)
    assert Counter(s.id for s in ended).keys() == set(range(len(asked)))
    assert all(count == 1 for count in Counter(s.id for s in ended).values())


def test_first_come_first_served():
    scheduler = Scheduler(n_slots=2)
    made = [sequence(id) for id in range(5)]
    for s in made:
        scheduler.add(s)
    scheduler.schedule()
    assert [s.status for s in made] == [Status.RUNNING] * 2 + [Status.WAITING] * 3
    scheduler.finish(made[0], "length")
    scheduler.schedule()
    assert made[2].slot == made[0].slot and made[3].status is Status.WAITING


def test_a_long_prompt_is_read_in_chunks_beside_those_that_decode():
    scheduler = Scheduler(n_slots=3, prefill_budget=CHUNK)
    short, long, other = sequence(0, 1), sequence(1, 1000), sequence(2, 1000)
    for s in (short, long, other):
        scheduler.add(s)
    for cut in (256, 512, 768, 999):  # the last token is decoded
        prefill = scheduler.schedule()
        assert prefill[0] is long and scheduler.decoding == [short]
        long.cached += long.chunk
        assert long.cached == cut


def test_ending_twice_does_nothing():
    scheduler = Scheduler(n_slots=1)
    first, second = sequence(0), sequence(1)
    scheduler.add(first)
    scheduler.schedule()
    scheduler.finish(first, "length")
    scheduler.add(second)
    scheduler.schedule()
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
