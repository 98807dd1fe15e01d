"""Adapters served by name, in one batch with each other and with their base."""

import functools
import json
import random
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from patience import PATIENCE
from served import begun, command, http
from test_adapters import make

from gpt2_mlx import checkpoint, cli, pretrained, template, tokenizer
from gpt2_mlx.commands import replay
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.lora import TARGETS
from gpt2_mlx.model import GPT2
from gpt2_mlx.serving import engines, served_adapters
from gpt2_mlx.serving.config import ServeConfig

SHAPE = GPT2Config(block_size=48, vocab_size=257, n_layer=1, n_head=2, n_embd=32)
NAMES = ("pirate", "poet", "short")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a base and three adapters of it."""
    folder = tmp_path_factory.mktemp("served")
    model = GPT2(SHAPE, seed=1)
    model.update(tree_map(lambda p: 8 * p if p.ndim == 2 else p, model.parameters()))  # far from uniform
    checkpoint.save(folder / "base", model, vocabulary=tokenizer.of_merges([]))
    for name, rank, block_size in zip(NAMES, (3, 20, 1), (48, 48, 24)):
        make(folder / "base", folder / name, rank, 1, tuple(TARGETS), block_size)
    (folder / "poet" / template.FILE).write_text(template.OURS)
    return folder


def flags(folder: Path, *more: str) -> list[str]:
    named = [part for name in NAMES for part in ("--adapter", f"{name}={folder / name}")]
    return ["--checkpoint", str(folder / "base"), *named, *more]


@pytest.fixture(scope="module")
def url(folder):
    with begun(folder, *flags(folder), "--max-batch-size", "8") as (_, url):
        yield url


def ask(url: str, **body) -> dict:
    response = http.post(url + "/v1/completions", json={"max_tokens": 8, "logprobs": 1, "seed": 1} | body)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(url: str, path: str = "/v1/completions", **body) -> tuple[str, str]:
    response = http.post(url + path, json=body)
    assert response.status_code == 400
    return response.json()["error"]["param"], response.json()["error"]["message"]


def test_thirty_two_clients_get_each_what_they_get_alone(url):
    pick = random.Random(5)
    bodies = [
        {
            "model": pick.choice(["base", *NAMES]),
            "prompt": "To be, or not to be, that is the question"[: pick.choice([1, 9, 41])],
            "max_tokens": pick.choice([1, 5, 20]),
            "seed": pick.randrange(4),
            "n": pick.choice([1, 1, 2]),
        }
        for _ in range(64)
    ]
    alone = [ask(url, **body)["choices"] for body in bodies]
    with ThreadPoolExecutor(32) as clients:
        assert list(clients.map(lambda body: ask(url, **body)["choices"], bodies)) == alone
    same = {json.dumps(ask(url, model=name, prompt="To be", max_tokens=20)["choices"]) for name in ("base", *NAMES)}
    assert len(same) == 4, "adapters change nothing"


@pytest.mark.parametrize("name", NAMES)
def test_its_text_is_that_of_the_adapter_served_alone(url, folder, name):
    """Also beyond its own window, which may be shorter than the base's."""
    encoding = pretrained.vocabulary(folder / name).encoding
    engine = Engine(pretrained.load(folder / name), 1, encoding=encoding)
    prompt = "It was the best of times, it was"
    params = SamplingParams(max_tokens=30, temperature=1.0, top_k=0, seed=1, logprobs=1)
    engine.add(encoding.encode_ordinary(prompt), params)
    expected = []
    while engine.has_work:
        expected += [token for output in engine.step() for token in output.tokens]
    (choice,) = ask(url, model=name, prompt=prompt, max_tokens=30)["choices"]
    assert choice["text"] == encoding.decode([token.id for token in expected])
    numbers = choice["logprobs"]["token_logprobs"][: len(expected)]
    assert numbers == pytest.approx([token.logprob for token in expected], abs=1e-4)


def test_models_and_card_name_them(url):
    models = http.get(url + "/v1/models").json()["data"]
    assert [(model["id"], model.get("parent")) for model in models] == [("base", None), *((n, "base") for n in NAMES)]
    assert [c["name"] for c in http.get(url + "/card").json()["checkpoints"]] == ["base", *NAMES]


def test_either_field_names_one_and_the_answer_tells_which(url):
    by_model, by_checkpoint = ask(url, model="poet", prompt="a"), ask(url, checkpoint="poet", prompt="a")
    assert by_model["choices"] == by_checkpoint["choices"] != ask(url, prompt="a")["choices"]
    assert {by_model["model"], by_checkpoint["model"], by_model["system_fingerprint"]} == {"poet"}
    assert ask(url, prompt="a")["model"] == ask(url, model="base", prompt="a")["model"] == "base"
    body = {"text": "a", "checkpoint": "poet"}
    assert http.post(url + "/complete-sentence", json=body).json()["checkpoint"] == "poet"


def test_an_adapter_chats_by_a_template_of_its_own(url):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "seed": 1}
    for name, status in (("poet", 200), ("pirate", 400), ("base", 400)):
        response = http.post(url + "/v1/chat/completions", json=body | {"model": name})
        assert response.status_code == status
        told = response.json()
        assert told["model"] == name if status == 200 else told["error"]["code"] == "no_chat_template"


def test_a_name_that_there_is_not_is_refused(url):
    allowed = "allowed: base, pirate, poet, short"
    assert refusal(url, model="pirat", prompt="a") == ("model", f"model is 'pirat'; {allowed}")
    path = "/complete-sentence"
    assert refusal(url, path, checkpoint="pirat", text="a") == ("checkpoint", f"checkpoint is 'pirat'; {allowed}")
    told = "model is 'poet', but checkpoint is 'pirate'; one of them is enough"
    assert refusal(url, model="poet", checkpoint="pirate", prompt="a") == ("checkpoint", told)


def replayed(monkeypatch, capsys, *words) -> tuple[int, str]:
    """The exit status of a replay and its line."""
    monkeypatch.setattr(sys, "argv", ["gpt2-mlx replay", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.run(replay.main)
    told = capsys.readouterr()
    return end.value.code, (told.out + told.err).strip()


@pytest.mark.cpu("a GPU may sum in another order")
@pytest.mark.parametrize("name", NAMES)
def test_a_receipt_tells_the_adapter_and_replays_without_the_others(url, folder, name, tmp_path, monkeypatch, capsys):
    answer = ask(url, model=name, prompt="It was the best of times, it was", max_tokens=30, receipt=True)
    receipt = answer["receipt"]
    assert receipt["checkpoint"] == "base" and receipt["adapter"]["folder"] == name
    assert "adapter" not in ask(url, prompt="a", receipt=True)["receipt"]
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(receipt))
    words = path, "--checkpoint", folder / "base", "--adapter", folder / name
    assert replayed(monkeypatch, capsys, *words) == (0, "the same answer")
    other = NAMES[NAMES.index(name) - 1]
    status, told = replayed(monkeypatch, capsys, *words[:-1], folder / other)
    assert status == 2 and re.search(rf"{other} has the hash \w+; it must be that of the receipt", told)


def test_an_audit_draws_with_the_adapter(folder):
    with begun(folder, *flags(folder), "--audit", "1") as (_, url):
        for name in ("base", *NAMES):
            ask(url, model=name, prompt="To be", max_tokens=4)
        while "gpt2_audits_total 4.0" not in (told := http.get(url + "/metrics").text):
            pass
        assert "gpt2_audits_differing_total 0.0" in told and "gpt2_audits_dropped_total 0.0" in told


@pytest.fixture
def find(folder):
    return functools.partial(served_adapters.find, base=folder / "base", taken={"base"}, quantize=None)


@pytest.mark.parametrize(
    "values, told",
    [
        (["pirate"], "--adapter is pirate; it must be NAME=RUN, the name 1 to 64"),
        (["pi rate=RUN"], "--adapter is pi rate=RUN; it must be NAME=RUN"),
        (["a=POET", "a=PIRATE"], "gives the name a twice"),
        (["base=POET"], "base is the name of a checkpoint"),
        (["step-00000002=POET"], "step-00000002 is the name of a checkpoint"),
        (["a=nowhere"], "--adapter is a=nowhere: nowhere is neither a checkpoint"),
        (["a=BASE"], r"--adapter is a=\S+: \S+ is no adapter \(no adapter_config.json\)"),
        (["a=OTHER"], r"--adapter is a=\S+: \S+other is an adapter of \S+, whose weights are not those of \S+base"),
        (["a=ROUNDED"], "learned on a base rounded to 8 bits; it needs --quantize 8"),
        (["a=VOCAB"], r"VOCAB has another vocabulary than \S+base"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(folder, find, tmp_path, values, told):
    def put(name, changed=()):
        target = tmp_path / name
        shutil.copytree(folder / "poet", target)
        config = json.loads((target / "adapter_config.json").read_text())
        config["gpt2_mlx"] |= dict(changed)
        (target / "adapter_config.json").write_text(json.dumps(config))
        return target

    places = {"POET": folder / "poet", "PIRATE": folder / "pirate", "BASE": folder / "base"}
    places |= {"OTHER": put("other", {"base_sha256": "0"}), "ROUNDED": put("rounded", {"quantize": 8})}
    places["VOCAB"] = put("VOCAB")
    checkpoint.save(tmp_path / "model", GPT2(SHAPE), vocabulary=tokenizer.of_merges([("a", "b")]))
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(tmp_path / "model" / file, places["VOCAB"])
    values = [re.sub("=([A-Z]+)$", lambda match: f"={places.get(match[1], match[1])}", value) for value in values]
    with pytest.raises(ValueError, match=told) as error:
        find(values)
    assert "\n" not in str(error.value)


def test_an_adapter_is_no_base(folder):
    with pytest.raises(ValueError, match="poet is an adapter itself"):
        served_adapters.find(["a=b"], folder / "poet", set(), None)


def test_a_rounded_base_takes_what_learned_on_one(folder, tmp_path):
    target = tmp_path / "rounded"
    shutil.copytree(folder / "poet", target)
    config = json.loads((target / "adapter_config.json").read_text())
    config["gpt2_mlx"]["quantize"] = 8
    (target / "adapter_config.json").write_text(json.dumps(config))
    found = served_adapters.find([f"a={target}"], folder / "base", set(), 8)
    assert found.folders == {"a": target.resolve()} and found.place(target.resolve()) == (found.base, 1)


def test_adapters_need_a_checkpoint_that_stays():
    with pytest.raises(ValueError, match="--watch is on, but --adapter is a=b"):
        ServeConfig(watch=True, adapter=("a=b",))


def test_a_broken_adapter_ends_the_start_with_one_line(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder / "poet", broken)
    arrays = mx.load(str(broken / "adapters.safetensors"))
    for file in broken.glob("adapter*.safetensors"):
        file.unlink()
    name, array = next(iter(arrays.items()))
    mx.save_safetensors(str(broken / "adapters.safetensors"), arrays | {name: array[:-1]})
    words = command("--checkpoint", str(folder / "base"), "--adapter", f"torn={broken}")
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=PATIENCE)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and re.search(r"error: adapter torn: .*adapters.safetensors", last), done.stderr


def test_the_planner_counts_what_is_beside_a_checkpoint(folder, monkeypatch):
    monkeypatch.setattr(engines.device, "memory", lambda: mx.get_active_memory() + 10**6)
    list(engines.loading(folder / "base", "float32", None, lambda model, _: model, beside=0))
    with pytest.raises(engines.TooLarge):
        list(engines.loading(folder / "base", "float32", None, lambda model, _: model, beside=10**6))
