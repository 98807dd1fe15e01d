import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx.corpus.loader import IGNORE, DataLoader, evaluation_batches


def first_batch(loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    return loader.next_step()[0]


@given(st.integers(2, 200), st.integers(1, 20), st.integers(1, 5), st.integers(0, 300))
def test_batches_hold_consecutive_tokens_and_follow_from_the_position(n, block_size, batch_size, position):
    if n <= block_size:
        return
    tokens = np.arange(n, dtype=np.uint16)
    ((inputs, targets),) = DataLoader(tokens, batch_size, block_size, seed=7, position=position).next_step()
    assert inputs.shape == targets.shape == (batch_size, block_size)
    assert inputs.dtype == targets.dtype == np.int32
    assert (targets == inputs + 1).all()
    assert (np.diff(inputs) == 1).all()
    walked = DataLoader(tokens, 1, block_size, seed=7)
    rows = [first_batch(walked)[0][0] for _ in range(position + batch_size)]
    assert (np.stack(rows[position:]) == inputs).all()


def test_an_epoch_reads_each_token_at_most_once_and_the_next_in_another_order():
    tokens = np.arange(1000, dtype=np.uint16)
    loader = DataLoader(tokens, 1, 8, seed=3)
    epochs = [np.concatenate([first_batch(loader)[0][0] for _ in range(loader.windows_per_epoch)]) for _ in range(2)]
    for read in epochs:
        assert len(read) == len(set(read)) >= 1000 - 3 * 8
    assert (epochs[0] != epochs[1]).any()
    other = DataLoader(tokens, 1, 8, seed=4)
    assert (first_batch(other)[0] != first_batch(DataLoader(tokens, 1, 8, seed=3))[0]).any()


def test_the_order_is_the_one_of_runs_that_are_under_way():
    random = np.random.RandomState([5, 1])
    offset, order = random.randint(7), random.permutation(142)
    loader = DataLoader(np.arange(1001, dtype=np.uint16), 1, 7, seed=5, position=142)
    assert loader.windows_per_epoch == 142
    starts = [first_batch(loader)[0][0, 0] for _ in range(142)]
    assert starts == (offset + 7 * order).tolist()


@given(st.integers(2, 300), st.integers(1, 5), st.integers(1, 17))
def test_evaluation_counts_each_target_once(n, batch_size, block_size):
    tokens = np.arange(n, dtype=np.uint16)
    seen = []
    for i, (inputs, targets) in enumerate(evaluation_batches(tokens, batch_size, block_size)):
        assert inputs.shape == targets.shape == (batch_size, block_size)
        counts = targets != IGNORE
        assert (targets[counts] == inputs[counts] + 1).all()
        first = i * batch_size * block_size + np.arange(batch_size)[:, None] * block_size
        assert (inputs - np.arange(block_size) == first)[counts].all()  # consecutive windows, from the start
        seen.extend(targets[counts])
    assert seen == list(range(1, n))


@given(st.integers(2, 300), st.integers(1, 5), st.integers(1, 17), st.data())
def test_with_a_stride_each_target_counts_once_with_the_context_that_is_promised(n, batch_size, block_size, data):
    stride = data.draw(st.integers(1, block_size))
    seen = []
    for inputs, targets in evaluation_batches(np.arange(n, dtype=np.uint16), batch_size, block_size, stride):
        counts = targets != IGNORE
        assert (targets[counts] == inputs[counts] + 1).all()
        rows, places = np.nonzero(counts)
        begins_the_text = inputs[rows, 0] == 0
        assert (begins_the_text | (places + 1 > block_size - stride)).all()
        assert (inputs[rows, 0] + places == inputs[rows, places]).all()  # what lies before is the text itself
        seen.extend(targets[counts])
    assert seen == list(range(1, n))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_processes_share_the_windows_of_one_alone(size):
    tokens = np.arange(500, dtype=np.uint16)
    alone = DataLoader(tokens, 2, 8, seed=3, position=10, accumulation=6)
    shared = [DataLoader(tokens, 2, 8, 3, 10, accumulation=6, rank=rank, size=size) for rank in range(size)]
    for _ in range(3):
        own = [loader.next_step() for loader in shared]
        assert [len(batches) for batches in own] == [6 // size] * size
        assert np.array_equal(np.array(alone.next_step()), np.concatenate([np.array(batches) for batches in own]))
        assert {loader.position for loader in shared} == {alone.position}
