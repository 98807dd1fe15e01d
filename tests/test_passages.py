import gzip
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2_mlx import tokenizer
from gpt2_mlx.corpus import passages
from gpt2_mlx.corpus.dataset import TokenDataset
from gpt2_mlx.corpus.source import Source, find

ENCODING, EOT = tokenizer.load(), tokenizer.EOT
PIECES = st.sampled_from(["a", "the", " ", "\n", "\n\n", "\r\n", "é", "中", "\N{GRINNING FACE}", "\x85", ":"])


def holders(text: str, first: int, last: int) -> list[int]:
    """The tokens of a text that hold a byte of its lines, found byte by byte."""
    line_of = np.cumsum([0, *(byte == 10 for byte in text.encode())])[:-1] + 1
    found, at = [], 0
    for i, id in enumerate(ENCODING.encode_ordinary(text)):
        size = len(ENCODING.decode_single_token_bytes(id))
        if any(first <= line <= last for line in line_of[at : at + size]):
            found.append(i)
        at += size
    return found


@given(st.lists(PIECES, min_size=1, max_size=40).map("".join), st.data())
@example("one\n\n\ntwo\nthree", None)  # a token holds several ends of lines
def test_lines_of_a_text_are_the_tokens_that_hold_their_bytes(text, data):
    n = text.count("\n") + (not text.endswith("\n"))
    first = data.draw(st.integers(1, n)) if data else 2
    last = data.draw(st.integers(first, n)) if data else 3
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("a.txt", "b.txt")]
        files[0].write_text("before\n", newline="")
        files[1].write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte order mark is no text
        before = [*ENCODING.encode_ordinary("before\n"), EOT]
        tokens = np.array([*before, *ENCODING.encode_ordinary(text)], np.uint16)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(passages, "_READ_AT_ONCE", 3)
            ((start, stop),) = passages.find(
                (f"b.txt:{first}-{last}",), Source("some", tuple(files)), tokens, tokenizer.gpt2()
            )
    assert [i - len(before) for i in range(start, stop)] == holders(text, first, last)


@pytest.fixture
def texts(tmp_path) -> Source:
    """A folder with files of all kinds, of 1, 1, 3, 0 and 2 documents."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("A first.\nA second.\n")
    (folder / "b.txt.gz").write_bytes(gzip.compress(b"B first.\nB second.\n"))
    lines = [json.dumps({"text": text}) for text in ("C one", "", "C three")]
    (folder / "c.jsonl").write_text(f"{lines[0]}\n\n{lines[1]}\n{lines[2]}\n")
    (folder / "d.jsonl").write_text("\n")
    pyarrow.parquet.write_table(pa.table({"text": ["E one", "E two"]}), folder / "e.parquet")
    (folder / "sub" / "a.txt").write_text("Another A.\n")
    return find(str(folder))


@pytest.fixture
def dataset(texts, tmp_path) -> TokenDataset:
    return TokenDataset.open(texts, tmp_path / "cache")


@pytest.mark.parametrize(
    ("names", "held"),
    [
        ("c.jsonl", ["C one||C three|"]),
        ("c.jsonl:1", ["C one|"]),
        ("c.jsonl:3", ["|"]),  # line 2 is blank
        ("c.jsonl:2-4", ["|C three|"]),
        ("b.txt.gz", ["B first.\nB second.\n|"]),
        ("b.txt.gz:2", ["B second.\n"]),
        ("texts/e.parquet:2", ["E two|"]),
        ("sub/a.txt", ["Another A.\n"]),  # the last document has nothing after it
        ("c.jsonl:4 c.jsonl:1-3 c.jsonl:1", ["C one||C three|"]),
        ("e.parquet:1 c.jsonl:1", ["C one|", "E one|"]),
    ],
)
def test_a_passage_is_the_documents_it_names(texts, dataset, names, held):
    found = passages.find(tuple(names.split()), texts, dataset.tokens, dataset.vocabulary)
    parts = [np.asarray(dataset.tokens)[start:stop].tolist() for start, stop in found]
    assert [ENCODING.decode(part).replace("<|endoftext|>", "|") for part in parts] == held


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.txt", r"'x.txt', which is none of the text's files: .*a.txt, .*b.txt.gz, .*c.jsonl"),
        ("x.txt:3", "'x.txt:3', which is none of the text's files"),
        ("a.txt", "'a.txt', which fits several files: .*texts/a.txt, .*texts/sub/a.txt"),
        ("", "'', which is none of"),
        ("b.txt.gz:3", "'b.txt.gz:3', but .*b.txt.gz has the lines 1 to 2"),
        ("b.txt.gz:2-1", "has the lines 1 to 2"),
        ("b.txt.gz:0", "has the lines 1 to 2"),
        ("e.parquet:3", "has the lines 1 to 2"),
        ("d.jsonl", "'d.jsonl', but there is no document in it"),
        ("c.jsonl:2", "'c.jsonl:2', but there is no document in these lines"),
    ],
)
def test_what_matches_nothing_is_refused_with_what_there_is(texts, dataset, name, message):
    with pytest.raises(ValueError, match=message):
        passages.find((name,), texts, dataset.tokens, dataset.vocabulary)


def test_a_dataset_without_passages_counts_the_tokens_of_training(tmp_path):
    lines = [f"This is line {i}.\n" for i in range(1, 11)]
    (tmp_path / "a.txt").write_text("".join(lines))
    source = find(str(tmp_path / "a.txt"))
    whole = TokenDataset.open(source, tmp_path / "cache")
    assert whole.n_ignored == 0 and whole.without((), source) is whole
    n = len(whole.split("train"))
    per_line = len(ENCODING.encode_ordinary(lines[0]))
    assert whole.without(("a.txt:2-3",), source).n_ignored == 2 * per_line
    assert whole.without(("a.txt:2-10",), source).n_ignored == n - per_line  # what lies in val and test is as before
    for names, what in (("a.txt", "all"), ("a.txt:10", "none")):
        with pytest.raises(ValueError, match=f"--without is {names}, which holds {what} of the tokens to learn from"):
            whole.without((names,), source)
    shards = find(str(next((tmp_path / "cache").iterdir())))
    with pytest.raises(ValueError, match="names files, but --data is a folder of token shards"):
        TokenDataset.open(shards).without(("a.txt",), shards)
