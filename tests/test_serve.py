"""The door serve.py, with a tiny model."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from client import COMPLETIONS, SENTENCE
from patience import PATIENCE
from served import begun, command, http

from gpt2_mlx import checkpoint
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("door") / "checkpoints" / "verse"
    checkpoint.save(folder / "step-00000001", GPT2(GPT2Config(block_size=16, n_layer=1, n_head=1, n_embd=8)))
    checkpoint.mark(folder, "latest", folder / "step-00000001")
    return folder


def test_the_door_serves_the_newest_run_and_ends_with_0_when_it_has_drained(tiny_run):
    folder = tiny_run.parents[1]
    with begun(folder, "--log-format", "json") as (process, url):
        answer = http.post(url + SENTENCE, json={"text": "KING RICHARD II:", "seed": 1, "max_tokens": 5})
        assert answer.json()["completed_sentence"].startswith("KING RICHARD II:")
        assert [model["id"] for model in http.get(url + "/v1/models").json()["data"]] == ["verse"]
        body = {"prompt": "KING", "max_tokens": 200, "stream": True, "seed": 1}
        with http.stream("POST", url + COMPLETIONS, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(lines)
        status, log = process.wait(PATIENCE), (folder / "log").read_text()
        assert status == 0, log
        assert all(json.loads(line)["request_id"] for line in log.splitlines())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "there is no run under checkpoints/: train one first with `python train.py`"),
        (("--checkpoint", "nowhere"), "nowhere is neither a checkpoint"),
        (("--port", "70000"), "--port is 70000; it must be at least 0 and at most 65535"),
        (("--max-queue", "0"), "--max-queue is 0; it must be at least 1"),
        (("--quantize", "3"), "invalid choice '3' for argument '--quantize'"),
        (("--api-key", ""), "--api-key is blank"),
        (("--depth", "3"), "Unrecognized options: --depth"),
        (("--checkpoint", "broken"), "model.safetensors"),
    ],
)
def test_a_mistake_at_the_door_is_one_line(tiny_run, tmp_path, flags, message):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_bytes((tiny_run / "latest" / "config.json").read_bytes())
    done = subprocess.run(command(*flags), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("serve.py: error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
