import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx import tokenizer
from gpt2_mlx.training.data import DataLoader, TokenDataset, evaluation_batches
from gpt2_mlx.training.text import Source

TEXT = "First Citizen:\nSpeak, speak. \N{GRINNING FACE} naïve café\n\n" * 30


def source(folder, *texts: str | bytes) -> Source:
    files = []
    for i, text in enumerate(texts):
        files.append(folder / f"{i}.txt")
        files[-1].write_bytes(text if isinstance(text, bytes) else text.encode())
    return Source("some", tuple(files))


def test_tokens_are_the_texts_and_are_split_by_position(tmp_path):
    tokens = TokenDataset.open(source(tmp_path, TEXT), tmp_path / "cache")
    assert tokenizer.load().decode(list(tokens.tokens)) == TEXT
    assert tokens.tokens.dtype == np.uint16
    n = len(tokens.tokens)
    splits = [tokens.split(name) for name in ("train", "val", "test")]
    assert [len(s) for s in splits] == [n * 8 // 10, n * 9 // 10 - n * 8 // 10, n - n * 9 // 10]
    assert (np.concatenate(splits) == tokens.tokens).all()


def test_files_are_separated_by_endoftext(tmp_path):
    tokens = TokenDataset.open(source(tmp_path, "one", "two"), tmp_path / "cache").tokens
    assert tokenizer.load().decode(list(tokens)) == "one<|endoftext|>two"


def test_the_cache_is_used_then_rebuilt_when_damaged_or_when_the_text_changes(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = np.array(TokenDataset.open(source(tmp_path, TEXT), cache).tokens)
    loads = []
    monkeypatch.setattr(tokenizer, "load", lambda load=tokenizer.load: loads.append(1) or load())
    TokenDataset.open(source(tmp_path, TEXT), cache)
    assert not loads  # mapped, not made
    (folder,) = cache.iterdir()
    damages = [
        lambda: (folder / "tokens.npy").write_bytes((folder / "tokens.npy").read_bytes()[:-3]),
        lambda: (folder / "meta.json").write_text('{"sha256": '),
        lambda: (folder / "tokens.npy").unlink(),
    ]
    for i, damage in enumerate(damages, 1):
        damage()
        assert (TokenDataset.open(source(tmp_path, TEXT), cache).tokens == first).all()
        assert len(loads) == i
    changed = TokenDataset.open(source(tmp_path, TEXT + "more"), cache).tokens
    assert len(changed) > len(first)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"ab\xff", r"0\.txt is not UTF-8: byte 0xff at offset 2"), (b"", "is empty")],
)
def test_unusable_texts_are_refused_and_leave_no_cache(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        TokenDataset.open(source(tmp_path, content), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_text_shorter_than_a_window_is_refused(tmp_path):
    dataset = TokenDataset(np.zeros(50, np.uint16))
    dataset.check_length(39)
    with pytest.raises(ValueError, match="50 tokens leave 40 for train, which needs 41 with --block-size 40"):
        dataset.check_length(40)


@given(st.integers(2, 200), st.integers(1, 20), st.integers(1, 5), st.integers(0, 300))
def test_batches_hold_consecutive_tokens_and_follow_from_the_position(n, block_size, batch_size, position):
    if n <= block_size:
        return
    tokens = np.arange(n, dtype=np.uint16)
    inputs, targets = DataLoader(tokens, batch_size, block_size, seed=7, position=position).next_batch()
    assert inputs.shape == targets.shape == (batch_size, block_size)
    assert inputs.dtype == targets.dtype == np.int32
    assert (targets == inputs + 1).all()
    assert (np.diff(inputs) == 1).all()
    walked = DataLoader(tokens, 1, block_size, seed=7)
    walked.position = 0
    rows = [walked.next_batch()[0][0] for _ in range(position + batch_size)]
    assert (np.stack(rows[position:]) == inputs).all()


def test_an_epoch_reads_each_token_at_most_once_and_the_next_in_another_order():
    tokens = np.arange(1000, dtype=np.uint16)
    loader = DataLoader(tokens, 1, 8, seed=3)
    epochs = [np.concatenate([loader.next_batch()[0][0] for _ in range(loader.windows_per_epoch)]) for _ in range(2)]
    for read in epochs:
        assert len(read) == len(set(read)) >= 1000 - 3 * 8
    assert (epochs[0] != epochs[1]).any()
    other = DataLoader(tokens, 1, 8, seed=4)
    assert (other.next_batch()[0] != DataLoader(tokens, 1, 8, seed=3).next_batch()[0]).any()


@given(st.integers(2, 300), st.integers(1, 5), st.integers(1, 17))
def test_evaluation_counts_each_target_once(n, batch_size, block_size):
    tokens = np.arange(n, dtype=np.uint16)
    seen = []
    for i, (inputs, targets) in enumerate(evaluation_batches(tokens, batch_size, block_size, block_size, ignore=-1)):
        assert inputs.shape == targets.shape == (batch_size, block_size)
        counts = targets >= 0
        assert (targets[counts] == inputs[counts] + 1).all()
        first = i * batch_size * block_size + np.arange(batch_size)[:, None] * block_size
        assert (inputs - np.arange(block_size) == first)[counts].all()  # consecutive windows, from the start
        seen.extend(targets[counts])
    assert seen == list(range(1, n))


@given(st.integers(2, 300), st.integers(1, 5), st.integers(1, 17), st.data())
def test_with_a_stride_each_target_counts_once_with_the_context_that_is_promised(n, batch_size, block_size, data):
    stride = data.draw(st.integers(1, block_size))
    seen = []
    for inputs, targets in evaluation_batches(np.arange(n, dtype=np.uint16), batch_size, block_size, stride, ignore=-1):
        counts = targets >= 0
        assert (targets[counts] == inputs[counts] + 1).all()
        rows, places = np.nonzero(counts)
        begins_the_text = inputs[rows, 0] == 0
        assert (begins_the_text | (places + 1 > block_size - stride)).all()
        assert (inputs[rows, 0] + places == inputs[rows, places]).all()  # what lies before is the text itself
        seen.extend(targets[counts])
    assert seen == list(range(1, n))


def test_a_split_can_be_all_of_the_text():
    dataset = TokenDataset(np.arange(100, dtype=np.uint16))
    assert len(dataset.split("test")) == 10
    assert (dataset.split("all") == dataset.tokens).all()
