"""Token shards: the same bytes whatever happens on the way."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import eventually

from gpt2_mlx import device, files, tokenizer
from gpt2_mlx.corpus import documents, shards

ROOT = Path(__file__).parents[1]
GPT2 = tokenizer.gpt2()
TEXTS = ["".join(f"Line {i} of {n}: naïve café, isn't it?\n\n" for i in range(n)) for n in (500, 1, 0, 300)]


@pytest.fixture
def text(tmp_path, monkeypatch) -> tuple[Path, ...]:
    """Three files of text and one of JSON lines, which make several pieces and shards."""
    monkeypatch.setattr(documents, "PIECE_CHARS", 1000)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1500)
    paths = tuple(tmp_path / name for name in ("0.txt", "1.txt", "2.txt", "3.jsonl"))
    for path, content in zip(paths, TEXTS):
        path.write_text(content)
    paths[3].write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXTS[3].split("\n\n")))
    return paths


def expected() -> list[int]:
    """The tokens of the text, by the plain tokenizer."""
    encoding = tokenizer.load()
    tokens = []
    for document in [*TEXTS[:3], *TEXTS[3].split("\n\n")]:
        tokens += [tokenizer.EOT, *encoding.encode_ordinary(document)]
    return tokens[1:]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_shards_hold_the_tokens_with_endoftext_between_documents(text, tmp_path):
    shards.prepare("some", text, tmp_path / "new" / "made", "key", GPT2)
    tokens, key = shards.read(tmp_path / "new" / "made", GPT2)
    assert key == "key"
    assert np.asarray(tokens).dtype == np.uint16
    assert np.asarray(tokens).tolist() == expected()
    index = json.loads((tmp_path / "new" / "made" / "shards.json").read_text())
    sizes = [shard["tokens"] for shard in index["shards"]]
    assert len(sizes) > 5 and all(1500 <= n < 2200 for n in sizes[:-1])
    raw = b"".join((tmp_path / "new" / "made" / shard["file"]).read_bytes() for shard in index["shards"])
    assert np.frombuffer(raw, "<u2").tolist() == expected()


@pytest.mark.parametrize("cores", [1, 3])
def test_interrupted_anywhere_it_ends_in_the_same_bytes(text, tmp_path, monkeypatch, cores):
    shards.prepare("some", text, tmp_path / "whole", "key", GPT2)
    monkeypatch.setattr(device, "cpu_count", lambda: cores)
    encoded = shards.encoded

    def interrupted(*arguments):
        for i, part in enumerate(encoded(*arguments)):
            if i == left:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(shards, "encoded", interrupted)
    for interruptions in range(100):
        left = 6 + interruptions  # bundles; a shard is about five
        try:
            shards.prepare("some", text, tmp_path / "broken", "key", GPT2)
            break
        except KeyboardInterrupt:
            with pytest.raises(ValueError, match="is not finished|No such file"):
                shards.read(tmp_path / "broken", GPT2)
    assert interruptions >= 3
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_a_slice_of_tokens_is_the_slice_of_an_array(tmp_path_factory, sizes, data):
    folder = tmp_path_factory.mktemp("tokens")
    array = np.arange(sum(sizes), dtype=np.uint16)
    ends = np.cumsum(sizes)
    for i, part in enumerate(np.split(array, ends[:-1])):
        part.tofile(folder / str(i))
    tokens = shards.Tokens([folder / str(i) for i in range(len(sizes))], ends, 0, len(array))
    for _ in range(3):
        border = st.none() | st.integers(-len(array) - 1, len(array) + 1)
        part = slice(data.draw(border), data.draw(border))
        tokens, array = tokens[part], array[part]
        assert len(tokens) == len(array)
        assert np.asarray(tokens).tolist() == array.tolist()
        assert np.asarray(tokens, dtype=np.int32).dtype == np.int32


def test_the_next_call_reads_no_text_again(text, tmp_path, monkeypatch):
    shards.prepare("some", text, tmp_path / "made", "key", GPT2)
    monkeypatch.setattr(documents, "pieces", None)
    shards.prepare("some", text, tmp_path / "made", "key", GPT2)
    with pytest.raises(TypeError):
        shards.prepare("some", text, tmp_path / "made", "another key", GPT2)


def test_what_is_damaged_is_told_and_made_anew(text, tmp_path):
    folder = tmp_path / "made"
    shards.prepare("some", text, folder, "key", GPT2)
    whole = content(folder)
    index = json.loads(whole["shards.json"])
    flipped = bytes([whole["tokens-00002.bin"][0] ^ 1]) + whole["tokens-00002.bin"][1:]
    for name, damage, message in [
        ("tokens-00002.bin", flipped, "tokens-00002.bin is damaged"),
        ("tokens-00002.bin", flipped[:-2], "tokens-00002.bin is damaged"),
        ("tokens-00002.bin", None, "No such file"),
        ("shards.json", whole["shards.json"][:-9], "shards.json is no list of token shards: "),
        ("shards.json", b"[]", "shards.json is no list of token shards: "),
        ("shards.json", b"{}", "shards.json is no list of token shards: 'format'"),
        ("shards.json", json.dumps(index | {"vocab_sha256": ""}).encode(), "another format or vocabulary"),
        ("shards.json", None, "No such file"),
    ]:
        (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
        with pytest.raises(ValueError, match=message):
            shards.read(folder, GPT2)
        shards.prepare("some", text, folder, "key", GPT2)
        assert content(folder) == whole


def test_texts_that_cannot_be_used_leave_no_shard(text, tmp_path):
    text[3].write_bytes(b"no json")
    for paths, message in ((text, "3.jsonl, line 1 is not JSON"), (text[2:3], r"some is empty: .*2\.txt")):
        with pytest.raises(ValueError, match=message):
            shards.prepare("some", paths, tmp_path / "made", "key", GPT2)
        assert not content(tmp_path / "made")


def test_half_a_surrogate_pair_is_no_end(text, tmp_path):
    text[3].write_text(r'{"text": "a \ud83d b \ud83d\ude00"}')
    shards.prepare("some", text[3:], tmp_path / "made", "key", GPT2)
    assert (
        tokenizer.load().decode(np.asarray(shards.read(tmp_path / "made", GPT2)[0]).tolist())
        == "a \ufffd b \N{GRINNING FACE}"
    )


def test_little_of_the_text_is_read_ahead(text, monkeypatch):
    read = []
    bundles = ((read.append(i) or [(False, "x")], i) for i in range(10**9))
    with shards.ThreadPoolExecutor(1) as pool:
        work = shards.encoded(pool, bundles, GPT2)
        for done in range(1, 40):
            next(work)
            assert len(read) <= done + 8 * device.cpu_count()


def test_a_second_process_waits_for_the_first(text, tmp_path, capsys):
    folder = tmp_path / "made"
    folder.mkdir()
    held = files.lock(folder)
    second = threading.Thread(target=shards.prepare, args=("some", text, folder, "key", GPT2))
    second.start()
    eventually(lambda: "waiting for another process, which tokenizes some" in capsys.readouterr().out)
    assert second.is_alive() and not content(folder)
    held.close()
    second.join()
    assert np.asarray(shards.read(folder, GPT2)[0]).tolist() == expected()


# As train.py in the middle of a preparation, which does not get beyond its third shard.
STUCK = """
import sys, time
from pathlib import Path
from gpt2_mlx import cli, tokenizer
from gpt2_mlx.corpus import documents, shards
documents.PIECE_CHARS, shards.SHARD_TOKENS, encoded = 1000, 1500, shards.encoded
shards.encoded = lambda *args: (part for i, part in enumerate(encoded(*args)) if i < 8 or time.sleep(600))
*paths, folder = map(Path, sys.argv[1:])
cli.run(lambda: shards.prepare("some", tuple(paths), folder, "key", tokenizer.gpt2()))
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_stopped_by_a_signal_it_leaves_whole_shards_and_goes_on(text, tmp_path, name, status):
    shards.prepare("some", text, tmp_path / "whole", "key", GPT2)
    folder = tmp_path / "stopped"
    command = [sys.executable, "-c", STUCK, *map(str, text), str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    eventually((folder / "tokens-00001.bin").exists)
    process.send_signal(getattr(signal, name))
    output, errors = process.communicate()
    assert process.returncode == status and "Traceback" not in errors
    assert ("stopped while tokenizing some: the same command goes on" in output) == (name != "SIGKILL")
    whole = content(tmp_path / "whole")
    left = {file: found for file, found in content(folder).items() if file.endswith(".bin")}
    assert len(left) == 2 < len(whole) - 2
    assert left.items() <= whole.items()
    shards.prepare("some", text, folder, "key", GPT2)
    assert content(folder) == whole
