import hashlib

import numpy as np
import pytest

from gpt2_mlx import tokenizer
from gpt2_mlx.corpus import shards
from gpt2_mlx.corpus.dataset import TokenDataset
from gpt2_mlx.corpus.source import Source, find

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
    monkeypatch.setattr(shards, "encoded", lambda *args, make=shards.encoded: loads.append(1) or make(*args))
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
    given = TokenDataset.open(find(str(tmp_path / "shards")), tmp_path / "cache")
    assert given.key == made.key
    assert tokenizer.load().decode(np.asarray(given.tokens).tolist()) == TEXT + "<|endoftext|>two"
    assert not list((tmp_path / "cache").iterdir())  # used as it is
    (tmp_path / "shards" / "tokens-00000.bin").unlink()
    with pytest.raises(ValueError, match="shards.json is no list of token shards: .*No such file"):
        TokenDataset.open(find(str(tmp_path / "shards")), tmp_path / "cache")


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


def test_a_split_can_be_all_of_the_text():
    dataset = TokenDataset(np.arange(100, dtype=np.uint16))
    assert len(dataset.split("test")) == 10
    assert (dataset.split("all") == dataset.tokens).all()
