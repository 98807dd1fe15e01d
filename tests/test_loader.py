import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx.corpus.loader import IGNORE, DataLoader, evaluation_batches


def rows(loader: DataLoader, numbers: range) -> list[np.ndarray]:
    """The inputs of micro-batches of one window."""
    return [loader.micro_batch(number)[0][0] for number in numbers]


@given(st.integers(2, 200), st.integers(1, 20), st.integers(1, 5), st.integers(0, 100))
def test_batches_hold_consecutive_tokens_and_follow_from_their_number(n, block_size, batch_size, number):
    if n <= block_size:
        return
    tokens = np.arange(n, dtype=np.uint16)
    inputs, targets = DataLoader(tokens, batch_size, block_size, seed=7).micro_batch(number)
    assert inputs.shape == targets.shape == (batch_size, block_size)
    assert inputs.dtype == targets.dtype == np.int32
    assert (targets == inputs + 1).all()
    assert (np.diff(inputs) == 1).all()
    walked = rows(DataLoader(tokens, 1, block_size, seed=7), range((number + 1) * batch_size))
    assert (np.stack(walked[number * batch_size :]) == inputs).all()


def test_an_epoch_reads_each_token_at_most_once_and_the_next_in_another_order():
    tokens = np.arange(1000, dtype=np.uint16)
    loader = DataLoader(tokens, 1, 8, seed=3)
    n = loader.windows_per_epoch
    epochs = [np.concatenate(rows(loader, range(epoch * n, (epoch + 1) * n))) for epoch in range(2)]
    for read in epochs:
        assert len(read) == len(set(read)) >= 1000 - 3 * 8
    assert (epochs[0] != epochs[1]).any()
    other = DataLoader(tokens, 1, 8, seed=4)
    assert (other.micro_batch(0)[0] != loader.micro_batch(0)[0]).any()


def test_the_order_is_the_one_of_runs_that_are_under_way():
    random = np.random.RandomState([5, 1])
    offset, order = random.randint(7), random.permutation(142)
    loader = DataLoader(np.arange(1001, dtype=np.uint16), 1, 7, seed=5)
    assert loader.windows_per_epoch == 142
    starts = [row[0] for row in rows(loader, range(142, 284))]
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


@given(st.sets(st.integers(0, 60)), st.integers(1, 9), st.integers(0, 30))
def test_ignored_tokens_are_read_and_are_no_targets(ignored, block_size, number):
    tokens = np.arange(60, dtype=np.uint16)
    marks = np.diff([0, *(int(i in ignored) for i in range(60)), 0])
    passages = np.stack([np.flatnonzero(marks == 1), np.flatnonzero(marks == -1)], axis=1)
    inputs, targets = DataLoader(tokens, 2, block_size, seed=7).micro_batch(number)
    with_ignored = DataLoader(tokens, 2, block_size, 7, passages).micro_batch(number)
    assert (with_ignored[0] == inputs).all()
    assert (with_ignored[1] == np.where(np.isin(targets, [*ignored]), IGNORE, targets)).all()
    assert with_ignored[1].dtype == np.int32
