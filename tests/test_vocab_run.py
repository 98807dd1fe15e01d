"""A run with a vocabulary of its own: trained, stopped, resumed, evaluated, gone on with, converted, served."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI
from served import begun, http
from trained import ROOT, begin, command, final_bytes, read_to_step, train

import gpt2_mlx
from gpt2_mlx import checkpoint, metrics, pretrained


@pytest.fixture(scope="module")
def run(text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = train(text, folder, vocab=300)
    assert done.returncode == 0, done.stderr
    return folder


def command_line(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "gpt2_mlx", *words], capture_output=True, text=True, cwd=ROOT)


def test_killed_and_resumed_it_ends_with_the_same_bytes(run, text, tmp_path):
    with begin(command(text, tmp_path / "killed", vocab=300)) as process:
        read_to_step(process, 9)
        process.kill()
    done = train(text, tmp_path / "killed", "--resume")  # the vocabulary is the run's
    assert done.returncode == 0, done.stderr
    assert final_bytes(tmp_path / "killed") == final_bytes(run)
    other = train(text, tmp_path / "killed", "--resume", vocab="bytes", max_steps=41)
    assert (
        other.returncode == 2 and "--vocab is bytes, but" in other.stderr and "has the vocabulary 300" in other.stderr
    )


def test_run_and_checkpoints_carry_the_vocabulary(run):
    own = pretrained.vocabulary(run)
    assert own.size == 300 == checkpoint.read_config(run / "best").vocab_size
    assert all(pretrained.vocabulary(folder) == own for folder in checkpoint.all_of(run))
    model, tokenizer = gpt2_mlx.load(run)
    assert model.wte.weight.shape == (300, 8) and tokenizer.n_vocab == 300
    assert gpt2_mlx.generate(model, tokenizer, "Shall I", max_tokens=5, seed=1).startswith("Shall I")


def test_evaluate_agrees_with_the_runs_test_loss(run, text):
    done = command_line("evaluate", str(run), "--data", str(text), "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found, told = json.loads(done.stdout)["text"], metrics.read(run / "metrics.jsonl")
    test = next(event for event in told if event["event"] == "test")
    assert found["loss"] == pytest.approx(test["loss"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(test["bits_per_byte"], rel=1e-6)


def test_fine_tuning_takes_the_vocabulary_of_the_weights(run, text, tmp_path):
    flags = {"n_layer": 1, "max_steps": 2, "init_from": run}
    done = train(text, tmp_path / "tuned", **flags)
    assert done.returncode == 0, done.stderr
    assert pretrained.vocabulary(tmp_path / "tuned") == pretrained.vocabulary(run)
    assert json.loads((tmp_path / "tuned" / "train.json").read_text())["config"]["vocab"] == "300"
    other = train(text, tmp_path / "other", **flags, vocab="gpt2")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "--vocab is gpt2, but" in other.stderr and "has the vocabulary 300: leave it out" in other.stderr


def test_convert_keeps_it(run, tmp_path):
    done = command_line("convert", str(run), str(tmp_path / "half"), "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert pretrained.vocabulary(tmp_path / "half") == pretrained.vocabulary(run)


def test_a_service_of_it_answers_and_its_end_of_text_ends_texts(run, tmp_path):
    own = pretrained.vocabulary(run)
    with begun(tmp_path, "--checkpoint", str(run)) as (_, url):
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        ask = {"model": "any", "prompt": "Shall I", "max_tokens": 8, "seed": 1}
        free = client.completions.create(**ask, logprobs=1)
        assert free.usage.prompt_tokens == len(own.encoding.encode_ordinary("Shall I"))
        assert client.completions.create(**ask).choices[0].text == free.choices[0].text
        ended = client.completions.create(**ask, logit_bias={str(own.eot): 100})
        assert ended.choices[0].finish_reason == "stop" and ended.choices[0].text == ""
        beyond = http.post(f"{url}/v1/completions", json={"prompt": [own.size]})
        assert beyond.status_code == 400 and "at most 299" in beyond.json()["error"]["message"]
        assert http.get(f"{url}/card").json()["vocab_size"] == 300
        assert http.post(f"{url}/tokenize", json={"prompt": "thee"}).json()["tokens"] == own.encoding.encode("thee")
