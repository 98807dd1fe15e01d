"""Finding weights. The hub is a small one of our own on this machine, asked by huggingface_hub in another process."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpt2_mlx import GPT2, GPT2Config, checkpoint, pretrained

ROOT = Path(__file__).parents[1]
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "step-00000001"
    checkpoint.save(folder, GPT2(GPT2Config(block_size=8, vocab_size=61, n_layer=1, n_head=1, n_embd=8)))
    return folder


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for: a model's files, and each of them."""

    files: dict[str, bytes]
    fetched: list[str]
    asked: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/openai-community/gpt2/revision/"):
            names = [{"rfilename": name} for name in self.files]
            return self.answer(json.dumps({"id": "openai-community/gpt2", "sha": COMMIT, "siblings": names}).encode())
        if path.startswith("/api/models/openai-community/gpt2/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            return self.answer(json.dumps(entries).encode())
        name = path.rpartition("/")[2]
        if path.startswith("/openai-community/gpt2/resolve/") and name in self.files:
            if self.command == "GET":
                self.fetched.append(name)
            return self.answer(self.files[name])
        return self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        known = {"ETag": etag, "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}
        for name, value in {**known, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(folder, tmp_path):
    """A hub that has gpt2, and what asks it for a name in a process of its own."""
    Hub.files = {file.name: file.read_bytes() for file in folder.iterdir()} | {"pytorch_model.bin": b"pickle"}
    Hub.fetched, Hub.asked = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"

    def find(name: str, **environment: str) -> subprocess.CompletedProcess:
        code = "from gpt2_mlx import cli, pretrained; import sys; cli.run(lambda: print(pretrained.find(sys.argv[1])))"
        own = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
        }
        environment = {**os.environ, **own, **environment}
        return subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, text=True, cwd=ROOT, env=environment
        )

    yield find
    server.shutdown()
    server.server_close()


def test_a_hub_model_is_fetched_once_and_without_pickles(hub):
    done = hub("gpt2")
    assert done.returncode == 0, done.stderr
    found = Path(done.stdout.strip())
    assert checkpoint.load(found).config.n_embd == 8
    read = {"config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer_config.json"}
    assert set(Hub.fetched) == read
    assert hub("openai-community/gpt2").stdout == done.stdout
    assert len(Hub.fetched) == len(read)
    asked = len(Hub.asked)
    assert hub("gpt2").stdout == done.stdout and len(Hub.asked) == asked  # nobody is asked again
    offline = hub("gpt2", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.stdout == done.stdout


def test_what_was_fetched_in_part_is_fetched_whole(hub):
    found = Path(hub("gpt2").stdout.strip())
    (found / "model.safetensors").unlink()
    again = hub("gpt2")
    assert again.returncode == 0, again.stderr
    assert checkpoint.load(Path(again.stdout.strip())).config.n_embd == 8


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        (
            "gpt2",
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "openai-community/gpt2 is not in the cache, and the Hugging Face",
        ),
        ("gpt2", {"HF_HUB_OFFLINE": "1"}, "openai-community/gpt2 is not in the cache, and the Hugging Face"),
        ("nobody/nothing", {}, "the Hugging Face hub shows no model nobody/nothing"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(hub, name, environment, message):
    done = hub(name, **environment)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_path_is_found_without_the_hub(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_fetch", lambda name: pytest.fail(f"asked the hub for {name}"))
    assert pretrained.find(folder) == folder
    monkeypatch.chdir(folder.parent)
    assert pretrained.find(f"./{folder.name}") == Path(folder.name)
    for name in ("nowhere", f"{folder.name}/nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match=f"{name} is neither a checkpoint .* nor is it gpt2, .* or owner/name"):
            pretrained.find(name)


def test_a_folder_does_not_hide_the_published_weights(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_fetch", lambda name: folder)
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert pretrained.find("gpt2") == folder
    with pytest.raises(ValueError, match="gpt2 is neither a checkpoint"):
        pretrained.find("./gpt2")


@pytest.mark.parametrize(
    ("file", "change", "fits"),
    [
        ("vocab.json", lambda ids: ids, True),
        ("vocab.json", lambda ids: {**ids, "<pad>": 50257}, True),
        ("vocab.json", lambda ids: {**ids, "the": ids["a"], "a": ids["the"]}, False),
        ("vocab.json", lambda ids: {"a": 0}, False),
        ("vocab.json", lambda ids: [], False),
        ("tokenizer.json", lambda ids: {"model": {"type": "BPE", "vocab": ids}}, True),
        ("tokenizer.json", lambda ids: {"model": {"type": "BPE", "vocab": {"a": 0}}}, False),
        ("tokenizer.json", lambda ids: {"model": {"type": "Unigram", "vocab": [["a", -1.5]]}}, False),
        ("spiece.model", lambda ids: None, False),
        ("vocab.txt", lambda ids: None, False),
    ],
)
def test_another_tokenizer_than_gpt2s_is_refused(folder, tmp_path, file, change, fits):
    ids = json.loads((folder / "vocab.json").read_text())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_text(json.dumps(change(ids)))
    if fits:
        assert pretrained.find(tmp_path) == tmp_path
    else:
        with pytest.raises(ValueError, match=f"{file} is not GPT-2's vocabulary"):
            pretrained.find(tmp_path)
