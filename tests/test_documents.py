import gzip
import io
import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2_mlx import tokenizer
from gpt2_mlx.corpus import documents

ENCODING = tokenizer.load()
# What GPT-2's pattern tells apart: letters, digits, the rest, contractions, spaces; few, so that runs of them come up.
FEW = st.sampled_from(
    [*"ab1.'s", "'ll", " ", "\n", "\r\n", "\t", "\x1c", "\xa0", "\u3000", "é", "中", "\N{GRINNING FACE}"]
)
TEXT = st.text("a.'s \n", max_size=30) | st.lists(FEW | st.characters(), max_size=30).map("".join)


def read(name: str, content: bytes) -> list[str]:
    """The documents of a file."""
    read = []
    for begins, text in documents.pieces(io.BytesIO(content), name):
        read.append(text) if begins else read.append(read.pop() + text)
    return read


@settings(max_examples=500)
@given(TEXT)
@example("a\n\n\nb")  # two tokens: the first two line ends, the third
@example("it's  'll")
def test_no_cut_changes_a_token(text):
    whole = ENCODING.encode_ordinary(text)
    for end in range(len(text) + 1):  # however much of the text is known yet
        if match := documents.LAST_CUT.match(text[:end]):
            left, right = text[: match.end()], text[match.end() :]
            assert ENCODING.encode_ordinary(left) + ENCODING.encode_ordinary(right) == whole


@given(st.lists(TEXT, max_size=5), st.integers(1, 20))
def test_the_pieces_of_a_document_give_its_tokens(blocks, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE_CHARS", size)
        pieces = list(documents.cut(blocks))
    assert "".join(pieces) == "".join(blocks)
    apart = [id for piece in pieces for id in ENCODING.encode_ordinary(piece)]
    assert apart == ENCODING.encode_ordinary("".join(blocks))


def test_pieces_are_of_about_the_size(monkeypatch):
    monkeypatch.setattr(documents, "PIECE_CHARS", 100)
    pieces = list(documents.pieces(io.BytesIO(b"seven letters and six spaces here " * 100), "a.txt"))
    assert len(pieces) > 15
    assert [begins for begins, _ in pieces] == [True] + [False] * (len(pieces) - 1)
    assert all(len(text) < 200 for _, text in pieces)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_file_of_text_is_one_document_whatever_the_block(monkeypatch, size):
    monkeypatch.setattr(documents, "PIECE_CHARS", size)
    text = "naïve \N{GRINNING FACE}\r\n 中文 \n"
    for name, content in (
        ("a.txt", text.encode()),
        ("a.txt.gz", gzip.compress(text.encode())),
        ("README", text.encode()),
    ):
        assert read(name, content) == [text]
    assert read("a.txt", b"") == [""]


@pytest.mark.parametrize("size", [3, 1000])
def test_a_line_of_json_is_a_document(monkeypatch, size):
    monkeypatch.setattr(documents, "PIECE_CHARS", size)
    texts = ["one\ntwo three four", "", "naïve \N{GRINNING FACE}"]
    lines = "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)) + "\n\n"
    assert read("a.jsonl", lines.encode()) == texts
    assert read("a.jsonl.gz", gzip.compress(lines.encode())) == texts


def parquet(pa, columns: dict) -> bytes:
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), file, row_group_size=3)
    return file.getvalue()


def test_a_row_of_parquet_is_a_document():
    pa = pytest.importorskip("pyarrow")
    texts = [f"naïve {i}" for i in range(10)]
    assert read("a.parquet", parquet(pa, {"id": list(range(10)), "text": texts})) == texts
    for content, message in (
        (b"PAR0", "a.parquet cannot be read: "),
        (parquet(pa, {"id": [1], "body": ["x"]}), "a.parquet has no column 'text', but id, body"),
        (parquet(pa, {"text": ["x", None]}), "a.parquet, row 1 has no string 'text', but None"),
        (parquet(pa, {"text": [1]}), "a.parquet, row 0 has no string 'text', but 1"),
    ):
        with pytest.raises(ValueError, match=message):
            read("a.parquet", content)


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match="a.parquet needs the package pyarrow: `pip install pyarrow`"):
        read("a.parquet", b"")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ab c\xff", "a.txt is not UTF-8: byte 0xff at offset 4"),
        ("a.txt", "ab cé".encode()[:-1], "a.txt is not UTF-8: byte 0xc3 at offset 4"),
        ("a.txt.gz", gzip.compress(b"ab c\xff"), "a.txt.gz is not UTF-8: byte 0xff at offset 4"),
        ("a.txt.gz", b"plain", "a.txt.gz is not a whole gzip file: Not a gzipped file"),
        (
            "a.txt.gz",
            gzip.compress(bytes(range(100)) * 9)[:-9],
            "a.txt.gz is not a whole gzip file: Compressed file ended",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "a.jsonl, line 2 is not JSON: Expecting value"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl, line 1 is not JSON: 'utf-8' codec"),
        ("a.jsonl", b'\n{"body": "a"}', 'a.jsonl, line 2 has no string \'text\': {"body": "a"}'),
        ("a.jsonl", b"[1]\n{}", "a.jsonl, line 1 has no string 'text': [1]"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl, line 1 has no string 'text': {\"text\": 3}"),
    ],
)
@pytest.mark.parametrize("size", [3, 1000])
def test_a_file_that_is_not_what_its_name_says_is_told(monkeypatch, size, name, content, message):
    monkeypatch.setattr(documents, "PIECE_CHARS", size)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(name, content)
    assert "\n" not in str(caught.value)


def test_what_was_searched_for_a_place_to_cut_is_not_searched_again(monkeypatch):
    searched, pattern = [], documents.LAST_CUT

    class Counting:
        def match(self, text, start=0):
            searched.append(len(text) - start)
            return pattern.match(text, start)

    monkeypatch.setattr(documents, "PIECE_CHARS", 100)
    monkeypatch.setattr(documents, "LAST_CUT", Counting())
    blocks = ["x" * 100] * 200 + ["y z" * 34]
    assert "".join(documents.cut(blocks)) == "".join(blocks)
    assert sum(searched) < 2 * len("".join(blocks))


@pytest.mark.parametrize("name", ["a.TXT", "a.txt.GZ", "a.JSONL", "a.jsonl.Gz"])
def test_names_in_capitals_say_the_same(name):
    content = b'{"text": "some"}' if "json" in name.lower() else b"some"
    content = gzip.compress(content) if name.lower().endswith("gz") else content
    assert list(documents.pieces(io.BytesIO(content), name)) == [(True, "some")]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_text(name):
    content = '\ufeff{"text": "some"}' if name == "a.jsonl" else "\ufeffsome"
    assert list(documents.pieces(io.BytesIO(content.encode()), name)) == [(True, "some")]


def test_json_nested_beyond_all_measure_is_no_json():
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        list(documents.pieces(io.BytesIO(b"[" * 200_000), "a.jsonl"))
