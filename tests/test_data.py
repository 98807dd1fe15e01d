import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx import tokenizer
from gpt2_mlx.training import text
from gpt2_mlx.training.data import DataLoader, TokenDataset, evaluation_batches
from gpt2_mlx.training.text import Source

TEXT = "First Citizen:\nSpeak, speak. \N{GRINNING FACE} naïve café\n\n" * 30


def source(folder, *texts: str | bytes) -> Source:
    files = []
    for i, content in enumerate(texts):
        files.append(folder / f"{i}.txt")
        files[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
    return Source("some", tuple(files))


def test_tokens_are_the_texts_and_are_split_by_position(tmp_path):
    dataset = TokenDataset.open(source(tmp_path, TEXT), tmp_path / "cache")
    tokens = np.asarray(dataset.tokens)
    assert tokenizer.load().decode(tokens.tolist()) == TEXT
    assert tokens.dtype == np.uint16
    n = len(tokens)
    splits = [np.asarray(dataset.split(name)) for name in ("train", "val", "test")]
    assert [len(s) for s in splits] == [n * 8 // 10, n * 9 // 10 - n * 8 // 10, n - n * 9 // 10]
    assert (np.concatenate(splits) == tokens).all()


def test_the_cache_is_used_then_rebuilt_when_damaged_or_when_the_text_changes(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = TokenDataset.open(source(tmp_path, TEXT), cache)
    loads = []
    monkeypatch.setattr(tokenizer, "load", lambda load=tokenizer.load: loads.append(1) or load())
    assert TokenDataset.open(source(tmp_path, TEXT), cache).key == first.key
    assert not loads  # read, not made
    (folder,) = cache.iterdir()
    (folder / "tokens-00000.bin").write_bytes((folder / "tokens-00000.bin").read_bytes()[:-3])
    again = TokenDataset.open(source(tmp_path, TEXT), cache)
    assert np.array_equal(again.tokens, np.asarray(first.tokens))
    assert len(loads) == 1
    changed = TokenDataset.open(source(tmp_path, TEXT + "more"), cache)
    assert len(changed.tokens) > len(first.tokens) and changed.key != first.key


def test_the_key_follows_from_contents_order_and_how_they_are_read(tmp_path):
    def key(*names: str) -> str:
        files = tuple(tmp_path / name for name in names)
        return TokenDataset.open(Source("some", files), tmp_path / "cache").key

    line = '{"text": "some"}'
    for name, content in (("a.txt", line), ("same.txt", line), ("a.jsonl", line), ("b.txt", "other")):
        (tmp_path / name).write_text(content)
    vocabulary_and_contents = tokenizer.VOCAB_SHA256.encode() + hashlib.sha256(line.encode()).digest()
    assert key("a.txt") == key("same.txt") == hashlib.sha256(vocabulary_and_contents).hexdigest()[:24]
    assert len({key("a.txt"), key("a.jsonl"), key("a.txt", "b.txt"), key("b.txt", "a.txt")}) == 4


def test_a_folder_of_shards_is_the_same_text(tmp_path):
    made = TokenDataset.open(source(tmp_path, TEXT, "two"), tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    folder.rename(tmp_path / "shards")
    given = TokenDataset.open(text.find(str(tmp_path / "shards")), tmp_path / "cache")
    assert given.key == made.key
    assert tokenizer.load().decode(np.asarray(given.tokens).tolist()) == TEXT + "<|endoftext|>two"
    assert not list((tmp_path / "cache").iterdir())  # used as it is
    (tmp_path / "shards" / "tokens-00000.bin").unlink()
    with pytest.raises(ValueError, match="shards.json is no list of token shards: .*No such file"):
        TokenDataset.open(text.find(str(tmp_path / "shards")), tmp_path / "cache")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"ab\xff", r"0\.txt is not UTF-8: byte 0xff at offset 2"), (b"", "is empty")],
)
def test_unusable_texts_are_refused_and_leave_no_tokens(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        TokenDataset.open(source(tmp_path, content), tmp_path / "cache")
    assert not [path for path in tmp_path.glob("cache/*/*") if path.name != ".lock"]


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


def test_the_order_is_the_one_of_runs_that_are_under_way():
    random = np.random.RandomState([5, 1])
    offset, order = random.randint(7), random.permutation(142)
    loader = DataLoader(np.arange(1001, dtype=np.uint16), 1, 7, seed=5, position=142)
    assert loader.windows_per_epoch == 142
    starts = [loader.next_batch()[0][0, 0] for _ in range(142)]
    assert starts == (offset + 7 * order).tolist()


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
