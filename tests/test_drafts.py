"""What is drafted, and how much of it: no model, no clock."""

import pytest

from gpt2_mlx import device
from gpt2_mlx.generation import drafts
from gpt2_mlx.generation.drafts import Costs, Drafter, Guesses, read
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.generation.scheduler import Sequence

COUNTS = (1, 2, 4, 8, 16, 32)
PAYS = {1: 10.0, 2: 10.5, 4: 12.0, 8: 16.0, 16: 24.0, 32: 40.0}  # seconds of a pass
NEVER = {n: 10.0 * n for n in COUNTS}


def guess(tokens: list[int], n: int = 4, end: int | None = None) -> list[int]:
    guesses = Guesses(tokens)
    guesses.guess(n, end)
    return guesses.latest


@pytest.mark.parametrize(
    ("tokens", "guessed"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], [4, 5, 6, 7]),
        ([1, 2, 3, 4, 9, 9, 2, 3], [4, 9, 9, 2]),  # the last two stood before, the last three did not
        ([1, 2, 8, 3, 4, 2, 8, 5, 6, 2, 8], [5, 6, 2, 8]),  # as it went on last
        ([0, 2, 3, 7, 2, 3, 8, 0, 2, 3], [7, 2, 3, 8]),  # three tell more than two
        ([1, 2, 3, 1, 2, 3], [1, 2, 3, 1]),  # a loop goes on
        ([5, 5, 5], [5, 5, 5, 5]),
        ([1, 2, 3, 4], []),
        ([3], []),
    ],
)
def test_a_text_is_guessed_to_go_on_as_it_did_before(tokens, guessed):
    assert guess(tokens) == guessed


def test_the_end_of_a_text_is_not_drafted():
    assert guess([1, 2, 3, 4, 9, 5, 1, 2, 3], end=9) == [4]


def test_what_is_drawn_joins_the_text_and_judges_the_guess():
    guesses = Guesses([1, 2, 3, 4, 1, 2])
    guesses.guess(3, None)
    guesses.learn([3, 4, 7])  # the third of [3, 4, 1] was wrong
    assert guesses.rate == pytest.approx((1 - (7 / 8) ** 2) * 7 / 8)
    guesses.guess(3, None)
    assert guesses.latest == []
    guesses.learn([1, 2, 3])  # nothing was guessed, nothing is judged
    assert guesses.rate == pytest.approx((1 - (7 / 8) ** 2) * 7 / 8)
    guesses.guess(3, None)
    assert guesses.latest == [4, 7, 1]


def sequence(slot: int, rate: float | None = None, prompt=(1, 2, 3) * 3, block_size: int = 64, **params) -> Sequence:
    made = Sequence(slot, list(prompt), SamplingParams(**params), block_size)
    made.slot = slot
    if rate is not None:
        made.guesses = Guesses(made.prompt)
        made.guesses.rate = rate
    return made


def drafter(seconds: dict[int, float], speculate="auto", end=None) -> Drafter:
    made = Drafter(speculate, COUNTS, end)
    for n, of_n in seconds.items():
        for _ in range(2):
            made.note(n, of_n)
    return made


def lengths(made: Drafter, *sequences: Sequence) -> list[int]:
    return [len(draft) for draft in made.drafts(list(sequences))]


def test_the_better_the_guesses_the_more_is_drafted():
    assert [lengths(drafter(PAYS), sequence(0, rate))[0] for rate in (0, 0.02, 0.2, 0.8, 1)] == [0, 0, 1, 7, 15]


def test_nothing_is_drafted_where_it_does_not_pay():
    assert lengths(drafter(NEVER), sequence(0, 0.99)) == [0]


@pytest.mark.parametrize(("rate", "drafted"), [(0.1, 0), (0.3, 1)])
def test_a_place_that_is_free_is_no_reason_for_a_draft_that_brings_next_to_nothing(rate, drafted):
    """Three texts take a pass of four rows; one of another shape may have to be built."""
    assert lengths(drafter(PAYS), sequence(0, rate), sequence(1, 0.0), sequence(2, 0.0)) == [drafted, 0, 0]


def test_a_new_text_is_not_drafted_until_a_guess_was_right():
    made, text = drafter(PAYS), sequence(0)
    assert lengths(made, text) == [0]
    made.learn(text, [1])
    text.append(1)
    assert lengths(made, text)[0] > 0


def test_the_rows_go_to_the_likeliest_guesses_and_are_fewer_in_a_crowd():
    made = drafter(PAYS)
    alone, beside = lengths(made, sequence(0, 0.9)), lengths(made, sequence(0, 0.9), sequence(1, 0.3), sequence(2, 0.0))
    assert alone[0] > beside[0] > beside[1] and beside[2] == 0
    crowd = lengths(made, *(sequence(slot, 0.95) for slot in range(24)))
    assert sum(crowd) <= 8 and max(crowd) <= 1
    assert lengths(made, *(sequence(slot, 1.0) for slot in range(32))) == [0] * 32
    assert lengths(made, sequence(40, 1.0)) == [0]  # a step takes two passes then


def test_one_token_at_a_time_is_measured_first():
    assert lengths(drafter({}), sequence(0, 0.9)) == [0]
    assert lengths(drafter({1: 10.0}), sequence(0, 0.9))[0] > 0  # what is not known yet is tried


def test_the_quickest_of_the_last_passes_counts_and_an_old_measurement_is_made_anew():
    costs = Costs(COUNTS)
    for seconds in (10.0, 1.0, 1.0, 2.0):
        costs.note(1, seconds)
    for seconds in (90.0, 3.0):  # the first had to be built
        costs.note(4, seconds)
    assert costs.of(1, 1) == 1.0 and costs.of(4, 1) == 3.0
    assert costs.of(2, 1) == pytest.approx(1.1) and costs.of(8, 1) == pytest.approx(3.3)
    for _ in range(drafts.AGE * 3 + 1):
        costs.note(1, 1.0)
    assert costs.of(4, 1) == pytest.approx(1.1**2)
    for _ in range(drafts.AGE + 1):
        costs.note(8, 1.0)
    assert costs.of(1, 1) is None


@pytest.mark.parametrize(
    ("changes", "drafted"),
    [
        ({}, 5),
        ({"cold": True}, 0),
        ({"max_tokens": 3}, 2),  # one more is drawn than is drafted
        ({"max_tokens": 1}, 0),
        ({"block_size": 11}, 2),  # the slot is full then
        ({"block_size": 9}, 0),
    ],
)
def test_a_number_drafts_so_many_as_long_as_there_is_room(changes, drafted):
    assert lengths(drafter(NEVER, 5), sequence(0, **changes)) == [drafted]


def test_a_number_is_shared_in_a_crowd_as_well():
    made = drafter(NEVER, 7)
    assert lengths(made, *(sequence(slot) for slot in range(2))) == [7, 7]
    assert lengths(made, *(sequence(slot) for slot in range(8))) == [3] * 8
    assert lengths(drafter(PAYS, "off"), sequence(0, 1.0)) == [0]


def test_on_a_gpu_auto_is_off_and_a_number_is_not(monkeypatch):
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    assert lengths(drafter(PAYS), sequence(0, 1.0)) == [0]
    assert lengths(drafter(PAYS, 3), sequence(0, 1.0)) == [3]


def test_a_number_may_be_a_flags_text():
    assert read("31") == 31


@pytest.mark.parametrize("speculate", [0, 32, -1, "on", "40", None])
def test_other_values_are_refused(speculate):
    with pytest.raises(ValueError, match=f"speculate is {speculate}; it must be auto, off or a number from 1 to 31"):
        Drafter(speculate, COUNTS, None)
