import json

import mlx.core as mx
import pytest
from huggingface_hub import ModelCard

from gpt2_mlx import GPT2, GPT2Config, card, checkpoint, metrics

FACTS = {
    "config": {"init_from": "gpt2", "optimizer": "adamw", "learning_rate": 6e-5, "data": "/home/me/diary.txt"},
    "text": {"name": "diary", "files": ["/home/me/diary.txt"], "key": "k", "note": ""},
    "tokens": {"train": 800, "val": 100, "test": 1000},
    "device": "Apple M3 Max, GPU",
    "processes": 1,
    "versions": {"mlx": "0.32.4"},
}


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints, of which the first is the best."""
    run = tmp_path / "me" / "diary-gpt2"
    for step in (4, 8):
        checkpoint.save(run / checkpoint.name_of(step), GPT2(GPT2Config(block_size=16, n_layer=1, n_head=1, n_embd=32)))
    checkpoint.mark(run, "best", run / checkpoint.name_of(4))
    (run / "train.json").write_text(json.dumps(FACTS))
    for event, step, fields in (
        ("eval", 4, {"val_loss": 3.25, "bits_per_byte": 1.125}),
        ("eval", 8, {"val_loss": 3.5}),
        ("test", 4, {"loss": 3.375}),
        ("sample", 8, {"prompt": "It", "text": "It rained.\n\n``` again"}),
    ):
        metrics.write(run / "metrics.jsonl", event, step, **fields)
    (run / "loss.png").write_bytes(b"a curve")
    return run


def made(source, folder, name="me/diary", quantization=None):
    files = card.files(str(source), folder, name, quantization)
    return files, ModelCard(files["README.md"].decode())


def test_the_card_of_a_run(run):
    files, found = made(run, run / "best")
    assert found.data.to_dict() == {
        "base_model": "openai-community/gpt2",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gpt2", "mlx", "gpt2_mlx"],
    }
    assert files["loss.png"] == b"a curve" and "](loss.png)" in found.text
    for line in (
        "# diary",
        "Trained from the weights of gpt2 on the text `diary` (800 train, 100 val, 1,000 test tokens) with gpt2_mlx.",
        "| validation loss, nats per token | 3.2500 |\n| bits per byte | 1.1250 |\n| test loss, nats per token |",
        "| optimizer | adamw |\n| learning_rate | 6e-05 |",
        "    It rained.\n    \n    ``` again",
        'transformers.AutoModelForCausalLM.from_pretrained("me/diary")',
    ):
        assert line in found.text


def test_losses_are_those_of_the_checkpoints_own_step(run):
    _, found = made(run, run / checkpoint.name_of(8))
    assert "| validation loss, nats per token | 3.5000 |" in found.text
    assert "3.25" not in found.text and "test loss" not in found.text


def test_no_path_of_the_machine_is_told(run):
    facts = FACTS | {"config": FACTS["config"] | {"init_from": "/home/me/poems-gpt2"}}
    (run / "train.json").write_text(json.dumps(facts))
    files, found = made(run, run / "best")
    assert "from the weights of poems-gpt2 on" in found.text and "base_model" not in found.data.to_dict()
    assert b"/home" not in files["README.md"] and str(run.parent).encode() not in files["README.md"]


def test_what_a_run_began_from_is_told_wherever_the_card_is_written(run):
    """A relative path looks like a name on the hub where no such folder is in reach."""
    facts = FACTS | {"config": FACTS["config"] | {"init_from": "poems/base"}, "init": "/home/me/poems/base"}
    (run / "train.json").write_text(json.dumps(facts))
    files, found = made(run, run / "best")
    assert "from the weights of base on" in found.text and "base_model" not in found.data.to_dict()
    assert b"/home" not in files["README.md"]


def test_the_card_of_an_adapter(run):
    settings = {"init_from": "me/base", "lora_rank": 8, "lora_targets": ["attn.c_attn", "mlp.c_fc"], "quantize": None}
    (run / "train.json").write_text(json.dumps(FACTS | {"config": FACTS["config"] | settings}))
    for base, told in (("openai-community/gpt2", "openai-community/gpt2"), ("/home/me/base", None)):
        facts = {"base_model_name_or_path": base}
        (run / checkpoint.name_of(4) / "adapter_config.json").write_text(json.dumps(facts))
        files, found = made(run, run / "best")
        assert found.data.base_model == told and b"/home" not in files["README.md"]
        assert f"Trained from the weights of {base.rpartition('/')[2]} on" in found.text
        assert "| lora_rank | 8 |\n| lora_targets | attn.c_attn mlp.c_fc |\n| quantize | none |" in found.text


def test_a_fork_tells_what_it_was_forked_from_and_what_it_did_not_learn(run):
    facts = FACTS | {"fork": {"run": "/home/me/runs/diary", "step": 2, "sha256": {}}}
    facts["config"] = FACTS["config"] | {"without": ["/home/me/letters.txt:3-9", "may.txt"]}
    (run / "train.json").write_text(json.dumps(facts))
    files, found = made(run, run / "best")
    assert "Up to step 2 it is the run `diary`, from which it was forked." in found.text
    assert "It did not learn from `letters.txt:3-9`, `may.txt`: these tokens had no weight in the loss." in found.text
    assert b"/home" not in files["README.md"]


def test_a_known_text_tells_its_language(run):
    (run / "train.json").write_text(json.dumps(FACTS | {"text": FACTS["text"] | {"name": "shakespeare"}}))
    assert made(run, run / "best")[1].data.language == "en"


def test_a_model_of_the_hub_is_the_base_of_what_it_is_converted_to(run, tmp_path):
    folder = tmp_path / "snapshots" / "abc"
    checkpoint.save(folder, GPT2(GPT2Config(block_size=16, n_layer=1, n_head=1, n_embd=32)))
    files, found = made("owner/poet", folder, "poet-q4", {"group_size": 32, "bits": 4, "mode": "affine"})
    assert found.data.base_model == "owner/poet" and found.data.library_name == "mlx"
    assert "rounded to 4 bits" in found.text and "transformers." not in found.text
    assert not any(word in found.text for word in ("## Losses", "## Recipe", "Trained")) and set(files) == {"README.md"}
    assert "base_model" not in made(folder, folder)[1].data.to_dict()


def test_what_the_card_says_of_loading_is_true(run):
    folder = run / checkpoint.name_of(4)
    _, found = made(run, folder, str(folder))
    code = found.text.partition("```python\n")[2].partition("import transformers")[0]
    names = {}
    exec(code, names)
    assert names["model"](mx.array([[1, 2]])).shape == (1, 2, 50257)
