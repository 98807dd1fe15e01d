import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from gpt2_mlx import checkpoint, tokenizer
from gpt2_mlx.model import GPT2


@pytest.fixture
def saved(tmp_path, small):
    """A model and the folder it was saved to."""
    model = GPT2(small, seed=5)
    checkpoint.save(tmp_path / "step-00000001", model, {"step": mx.array(3)}, {"step": 1, "best_loss": 0.1})
    return model, tmp_path / "step-00000001"


def rewrite(folder, change):
    """Save the weights again as `change` leaves them."""
    weights = mx.load(str(folder / "model.safetensors"))
    mx.eval(weights)
    change(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def test_a_round_trip_keeps_every_bit(saved):
    model, folder = saved
    loaded = checkpoint.load(folder)
    assert loaded.config == model.config
    for (name, a), (_, b) in zip(tree_flatten(loaded.parameters()), tree_flatten(model.parameters())):
        assert (np.array(a) == np.array(b)).all(), name
    state, progress = checkpoint.load_training(folder, {"step": mx.array(0)})
    assert state["step"].item() == 3
    assert progress == {"step": 1, "best_loss": 0.1}


def test_the_layout_is_hugging_faces(saved, small):
    model, folder = saved
    weights = mx.load(str(folder / "model.safetensors"))
    C, n = small.n_embd, small.n_layer
    per_block = {
        "ln_1.weight": (C,),
        "ln_1.bias": (C,),
        "attn.c_attn.weight": (C, 3 * C),  # Conv1D: (in, out)
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias": (C,),
        "ln_2.weight": (C,),
        "ln_2.bias": (C,),
        "mlp.c_fc.weight": (C, 4 * C),
        "mlp.c_fc.bias": (4 * C,),
        "mlp.c_proj.weight": (4 * C, C),
        "mlp.c_proj.bias": (C,),
    }
    expected = {f"h.{i}.{name}": shape for i in range(n) for name, shape in per_block.items()}
    expected |= {"wte.weight": (61, C), "wpe.weight": (10, C), "ln_f.weight": (C,), "ln_f.bias": (C,)}
    assert {name: array.shape for name, array in weights.items()} == expected
    assert (np.array(weights["h.1.attn.c_proj.weight"]) == np.array(model.h[1].attn.c_proj.weight).T).all()
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert config["n_ctx"] == config["n_positions"] == 10
    assert config["activation_function"] == "gelu_new"
    assert (folder / "vocab.json").read_bytes() == (tokenizer.ASSETS / "encoder.json").read_bytes()
    assert (folder / "merges.txt").read_bytes() == (tokenizer.ASSETS / "vocab.bpe").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("h.1.mlp.c_fc.bias"), r"h\.1\.mlp\.c_fc\.bias is missing"),
        (lambda w: w.update(extra=mx.zeros(1)), "extra is not expected"),
        (lambda w: w.update({"wpe.weight": mx.zeros((9, 12))}), r"wpe\.weight is \(9, 12\), not \(10, 12\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, change, message):
    rewrite(saved[1], change)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(saved[1])


def test_broken_files_are_named(saved):
    _, folder = saved
    whole = (folder / "model.safetensors").read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:20], b""):
        (folder / "model.safetensors").write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
            checkpoint.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "must hold a JSON object"),
        ('{"model_type": "llama"}', "model_type is 'llama'; it must be 'gpt2'"),
        ('{"model_type": "gpt2"}', "has no n_positions"),
        ('{"model_type": "gpt2", "activation_function": "relu"}', "activation_function is 'relu'; this model has"),
        ('{"model_type": "gpt2", "layer_norm_epsilon": 0.001}', "layer_norm_epsilon is 0.001"),
        (
            '{"model_type": "gpt2", "n_positions": 4, "vocab_size": 5, "n_layer": 1, "n_head": 3, "n_embd": 4}',
            "n_embd is 4; it must be a multiple of n_head, which is 3",
        ),
    ],
)
def test_a_config_that_is_none_is_named(saved, content, message):
    (saved[1] / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(saved[1])


def test_a_failure_in_mid_save_leaves_the_previous_one(saved, monkeypatch):
    model, folder = saved
    before = sorted((file.name, file.read_bytes()) for file in folder.iterdir())

    def fail(*args, **kwargs):
        raise RuntimeError("[write] Unable to write 17 bytes to file.")  # as MLX tells of a full disk

    monkeypatch.setattr("mlx.core.save_safetensors", fail)
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written: \[write\] Unable"):
        checkpoint.save(folder, GPT2(model.config, seed=6))
    assert sorted((file.name, file.read_bytes()) for file in folder.iterdir()) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_run_is_its_best_checkpoint_or_else_its_latest(tmp_path, small):
    run = tmp_path / "run"
    model = GPT2(small)
    for step in (1, 2):
        checkpoint.save(run / f"step-{step:08d}", model)
    with pytest.raises(ValueError, match="neither a checkpoint"):
        checkpoint.resolve(run)
    checkpoint.mark(run, "latest", run / "step-00000002")
    assert checkpoint.resolve(run).resolve().name == "step-00000002"
    checkpoint.mark(run, "best", run / "step-00000001")
    assert checkpoint.resolve(run).resolve().name == "step-00000001"
    assert checkpoint.resolve(run / "step-00000002").name == "step-00000002"


def test_pruning_keeps_the_newest_and_the_linked(tmp_path, small):
    model = GPT2(small)
    for step in range(1, 6):
        checkpoint.save(tmp_path / f"step-{step:08d}", model)
    checkpoint.mark(tmp_path, "best", tmp_path / "step-00000002")
    checkpoint.mark(tmp_path, "latest", tmp_path / "step-00000005")
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-{n:08d}" for n in (2, 4, 5)]
