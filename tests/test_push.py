"""gpt2-mlx push in a process of its own, to a small hub on this machine."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlx.core as mx
import pytest

from gpt2_mlx import GPT2, GPT2Config, checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with a checkpoint that holds what training needs, and something of the user's own."""
    run = tmp_path_factory.mktemp("runs") / "verse"
    folder = run / checkpoint.name_of(4)
    model = GPT2(GPT2Config(block_size=8, vocab_size=50257, n_layer=1, n_head=1, n_embd=4))
    checkpoint.save(folder, model, {"moment": mx.zeros((2,))}, {"step": 4})
    (folder / "notes.txt").write_text("mine")
    checkpoint.mark(run, "latest", folder)
    return run


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for: a model, what it has, a commit."""

    asked: list[tuple[str, str, dict]]
    is_private: bool
    has_card: bool
    refuses: bool
    committed: dict[str, bytes]

    def answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "0" * 40)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append((self.command, self.path, {}))
        if self.path.startswith("/api/models/me/verse"):
            return self.answer({"id": "me/verse", "private": self.is_private, "sha": "0" * 40, "siblings": []})
        return self.answer({}, 200 if self.has_card and self.path.endswith("/README.md") else 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.asked.append((self.command, self.path, lines[0]))
        assert self.headers["Authorization"] == "Bearer hf_secret"
        if self.refuses:
            return self.answer({"error": "You don't have the rights"}, 403)
        if self.path == "/api/repos/create":
            return self.answer({"url": f"http://{self.headers['Host']}/me/verse", "id": "me/verse"})
        if self.path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in lines[0]["files"]]
            return self.answer({"files": files})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        assert self.path.endswith("/commit/main")
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.committed.update({file["path"]: base64.b64decode(file["content"]) for file in files})
        oid = "1" * 40
        commit = f"http://{self.headers['Host']}/me/verse/commit/{oid}"
        return self.answer({"commitUrl": commit, "commitOid": oid, "success": True})

    def log_message(self, *_):
        pass


@pytest.fixture
def push(tmp_path):
    """Runs `gpt2-mlx push` with these words, against the hub."""
    Hub.asked, Hub.committed, Hub.is_private, Hub.has_card, Hub.refuses = [], {}, False, False, False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}
    own |= {"HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def push(*words: object, **environment: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "gpt2_mlx", "push", *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **own, **environment}, timeout=300
        )

    yield push
    server.shutdown()
    server.server_close()


def test_the_model_and_its_card_are_uploaded_and_nothing_else(push, run_folder):
    done = push(run_folder, "me/verse")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("/me/verse\n")
    folder = run_folder / "latest"
    expected = {"config.json", "model.safetensors", "generation_config.json", "README.md"}
    expected |= {"vocab.json", "merges.txt", "tokenizer_config.json"}
    assert set(Hub.committed) == expected
    for name in expected - {"README.md"}:
        assert Hub.committed[name] == (folder / name).read_bytes()
    assert b'from_pretrained("me/verse")' in Hub.committed["README.md"]
    (made,) = [fields for _, path, fields in Hub.asked if path == "/api/repos/create"]
    assert (
        made["name"] == "verse"
        and made["organization"] == "me"
        and made.get("visibility") != "private"
        and not made.get("private")
    )
    assert not list(folder.glob("README.md"))


def test_private(push, run_folder):
    done = push(run_folder, "me/verse", "--private")
    assert done.returncode == 2 and not Hub.committed  # the hub keeps what it has as it is
    assert "me/verse is public on the hub: nothing was uploaded, since --private was given" in done.stderr
    (made,) = [fields for _, path, fields in Hub.asked if path == "/api/repos/create"]
    assert made.get("visibility") == "private" or made.get("private")  # newer and older versions of huggingface_hub
    Hub.is_private = True
    assert push(run_folder, "me/verse", "--private").returncode == 0
    assert "model.safetensors" in Hub.committed


def test_a_card_that_somebody_wrote_stays_or_is_what_is_uploaded(push, run_folder):
    Hub.has_card = True
    assert push(run_folder, "me/verse").returncode == 0
    assert "README.md" not in Hub.committed and "config.json" in Hub.committed
    own = run_folder / checkpoint.name_of(4) / "README.md"
    own.write_text("---\nlicense: mit\n---\nMine.\n")
    try:
        assert push(run_folder, "me/verse").returncode == 0
    finally:
        own.unlink()
    assert Hub.committed["README.md"] == b"---\nlicense: mit\n---\nMine.\n"


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("verse", {}, "the name on the hub is 'verse'; it must be owner/name"),
        ("me/ver..se", {}, "me/ver..se cannot be uploaded to the Hugging Face hub: "),
        ("me/verse", {"HF_TOKEN": ""}, "the Hugging Face hub asks for a token: `hf auth login`, or set HF_TOKEN"),
        ("me/verse", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "me/verse cannot be uploaded to the Hugging Face hub: "),
        ("me/verse", {"HF_HUB_OFFLINE": "1"}, "me/verse cannot be uploaded to the Hugging Face hub: "),
    ],
)
def test_what_cannot_be_uploaded_is_one_line(push, run_folder, name, environment, message):
    done = push(run_folder, name, **environment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert not Hub.committed


def test_a_token_without_the_rights_is_one_line(push, run_folder):
    Hub.refuses = True
    done = push(run_folder, "me/verse")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be uploaded to the Hugging Face hub: " in done.stderr and "403" in done.stderr


def test_what_is_no_run(push, tmp_path):
    done = push(tmp_path, "me/verse")
    assert done.returncode == 2 and f"{tmp_path} is neither a checkpoint" in done.stderr
    assert not Hub.asked
