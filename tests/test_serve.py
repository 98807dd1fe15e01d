"""The door serve.py, with a tiny model."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest
from client import COMPLETIONS, SENTENCE
from patience import PATIENCE, eventually
from served import begun, command, http

from gpt2_mlx import checkpoint
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which process is whose")


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("door") / "checkpoints" / "verse"
    checkpoint.save(folder / "step-00000001", GPT2(GPT2Config(block_size=160, n_layer=1, n_head=1, n_embd=8)))
    checkpoint.mark(folder, "latest", folder / "step-00000001")
    return folder


def test_the_door_serves_the_newest_run_and_ends_with_0_when_it_has_drained(tiny_run):
    folder = tiny_run.parents[1]
    with begun(folder, "--log-format", "json") as (process, url):
        answer = http.post(url + SENTENCE, json={"text": "KING RICHARD II:", "seed": 1, "max_tokens": 5})
        assert answer.json()["completed_sentence"].startswith("KING RICHARD II:")
        long = {"prompt": [1] * 150, "max_tokens": 1}
        details = [http.post(url + COMPLETIONS, json=long).json()["usage"]["prompt_tokens_details"] for _ in range(2)]
        assert details == [{"cached_tokens": 0}, {"cached_tokens": 128}]
        assert f"gpt2_prefix_cache_bytes {2 * 8 * 128 * 4}.0" in http.get(url + "/metrics").text
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


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "maximum": 150, "minimum": 0},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_a_text_keeps_its_form_streamed_or_not_alone_or_in_company(tiny_run):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    body = {"prompt": "KING", "max_tokens": 200, "seed": 1, "n": 3, "temperature": 1.5, "response_format": form}
    free = {"prompt": "KING", "max_tokens": 40, "seed": 1}

    def texts(body: dict) -> list[str]:
        return [choice["text"] for choice in http.post(url + COMPLETIONS, json=body).json()["choices"]]

    with begun(tiny_run.parents[1], "--max-batch-size", "4") as (_, url):
        plain, whole = texts(free), texts(body)
        assert len(set(whole)) == 3
        for text in whole:
            jsonschema.validate(json.loads(text), PERSON)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(texts, [body, free] * 4)) == [whole, plain] * 4
        told = {0: "", 1: "", 2: ""}
        with http.stream("POST", url + COMPLETIONS, json=body | {"stream": True}) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    (choice,) = json.loads(line[6:])["choices"]
                    told[choice["index"]] += choice["text"]
                    assert choice["finish_reason"] in (None, "stop")
        assert list(told.values()) == whole
        sentence = {"text": "To be? ", "structured_outputs": {"choice": ["Yes.", "No."]}, "seed": 1}
        answer = http.post(url + SENTENCE, json=sentence).json()
        assert answer["completed_sentence"] in ("To be? Yes.", "To be? No.") and answer["finish_reason"] == "stop"


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


def engine_of(service: int) -> int:
    """The process that a service has started."""
    children = Path(f"/proc/{service}/task/{service}/children").read_text().split()
    return int(children[-1])


@contextlib.contextmanager
def streamed(url: str, body: dict):
    """The text pieces of a streamed completion, as they come."""
    with http.stream("POST", url + COMPLETIONS, json=body | {"stream": True}) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: {"))
        yield (json.loads(line[6:])["choices"][0]["text"] for line in lines)


BODY = {"prompt": "KING", "max_tokens": 300, "seed": 1, "temperature": 1.5}


@linux_only
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP], ids=lambda blow: blow.name)
def test_a_client_does_not_notice_that_the_engines_process_ended(tiny_run, blow, monkeypatch):
    with begun(tiny_run.parents[1]) as (process, url):
        whole = http.post(url + COMPLETIONS, json=BODY).json()["choices"][0]["text"]
        with streamed(url, BODY) as pieces:
            text = next(pieces)
            first = engine_of(process.pid)
            os.kill(first, blow)
            text += "".join(pieces)
        assert text == whole
        assert engine_of(process.pid) != first
        assert "gpt2_engine_restarts_total 1.0" in http.get(url + "/metrics").text
        eventually(lambda: http.get(url + "/ready").status_code == 200)


@linux_only
def test_the_engines_process_ends_with_the_service(tiny_run):
    with begun(tiny_run.parents[1]) as (process, _):
        engine = engine_of(process.pid)
        process.kill()
        eventually(lambda: not Path(f"/proc/{engine}").exists() or state(engine) == "Z")


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_second_signal_does_not_wait_for_texts(tiny_run):
    with begun(tiny_run.parents[1]) as (process, url):
        with streamed(url, BODY | {"max_tokens": 4096}) as pieces:
            next(pieces)
            process.send_signal(signal.SIGTERM)
            eventually(lambda: http.get(url + "/ready", headers={"connection": "close"}).status_code == 503)
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
        assert process.returncode == 0
