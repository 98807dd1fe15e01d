import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from gpt2_mlx import checkpoint, layout, tokenizer
from gpt2_mlx.config import GPT2Config
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


def assert_same_weights(one, other):
    for (name, a), (_, b) in zip(tree_flatten(one.parameters()), tree_flatten(other.parameters())):
        assert (np.array(a) == np.array(b)).all(), name


def test_a_round_trip_keeps_every_bit(saved):
    model, folder = saved
    loaded = checkpoint.load(folder)
    assert loaded.config == model.config
    assert_same_weights(loaded, model)
    state, progress = checkpoint.load_training(folder, {"step": mx.array(0)})
    assert state["step"].item() == 3
    assert progress == {"step": 1, "best_loss": 0.1}


def test_weights_to_train_on_lie_in_memory_as_those_that_were_saved(saved, small):
    model, folder = saved
    other = GPT2(small)
    checkpoint.load_weights(folder, other)
    assert_same_weights(other, model)
    for (name, a), (_, b) in zip(tree_flatten(other.parameters()), tree_flatten(model.parameters())):
        assert memoryview(a).strides == memoryview(b).strides, name


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
    assert config["bos_token_id"] == config["eos_token_id"] == 50256
    assert tokenizer.gpt2().files(10).items() <= {path.name: path.read_bytes() for path in folder.iterdir()}.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("h.1.mlp.c_fc.bias"), r"h\.1\.mlp\.c_fc\.bias is missing"),
        (lambda w: w.update(extra=mx.zeros(1)), "extra is not expected"),
        (lambda w: w.update({"wpe.weight": mx.zeros((9, 12))}), r"wpe\.weight is \(9, 12\), not \(10, 12\)"),
        (
            lambda w: w.update({"h.2.ln_1.bias": mx.full(12, mx.nan)}),
            r"h\.2\.ln_1\.bias holds values that are not finite",
        ),
        (
            lambda w: w.update({"wte.weight": mx.full((61, 12), mx.inf)}),
            r"wte\.weight holds values that are not finite",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, change, message):
    rewrite(saved[1], change)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(saved[1])


def test_broken_files_are_named(saved):
    _, folder = saved
    whole = (folder / "model.safetensors").read_bytes()
    for broken in (whole[:-1], whole[: len(whole) // 2], whole[:20], b""):
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


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"n_layer": 4}, r"h\.3\.ln_1\.weight is missing"),
        ({"n_layer": 2}, r"h\.2\.attn\.c_attn\.bias is not expected"),
        ({"n_layer": 10_000_000}, "n_layer is 10000000, but there are 40 tensors"),
        ({"n_embd": 14}, r"wte\.weight is \(61, 12\), not \(61, 14\)"),
        ({"vocab_size": 62}, r"wte\.weight is \(61, 12\), not \(62, 12\)"),
        ({"n_positions": 11}, r"wpe\.weight is \(10, 12\), not \(11, 12\)"),
        ({"quantization": {"bits": 4, "group_size": 64}}, r"h\.0\.attn\.c_attn has no scales"),
    ],
)
def test_a_config_that_lies_about_the_shapes_is_named(saved, field, message):
    path = saved[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | field))
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.load(saved[1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_while_loading_saved_and_loaded_again(tmp_path, bits):
    model = GPT2(GPT2Config(block_size=10, vocab_size=61, n_layer=2, n_head=2, n_embd=32), seed=5)
    checkpoint.save(tmp_path / "float", model)
    quantised = checkpoint.load(tmp_path / "float", quantize=bits)
    checkpoint.save(tmp_path / "quantised", quantised)
    again = checkpoint.load(tmp_path / "quantised")
    tokens = mx.array([[1, 2, 3, 60]])
    assert (again(tokens) == quantised(tokens)).all()
    with pytest.raises(ValueError, match=f"is quantised already, to {bits} bits"):
        checkpoint.load(tmp_path / "quantised", quantize=8)
    (tmp_path / "quantised" / "config.json").write_text(json.dumps(layout.config_fields(model)))
    with pytest.raises(ValueError, match=r"model\.h\.0\.attn\.c_attn\.scales is not expected"):
        checkpoint.load(tmp_path / "quantised")


def test_the_type_is_the_one_asked_for_or_the_one_stored(saved):
    model, folder = saved
    model.set_dtype(mx.float16)
    checkpoint.save(folder, model)
    assert checkpoint.load(folder).dtype == mx.float32
    assert checkpoint.load(folder, "bfloat16").dtype == mx.bfloat16
    assert checkpoint.load(folder, None).dtype == mx.float16
    with pytest.raises(ValueError, match="dtype is 'float8'; allowed: float32, bfloat16, float16"):
        checkpoint.load(folder, "float8")


def test_shards(saved):
    model, folder = saved
    tensors = layout.tensors(model)
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in tensors if files[name] == file})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert_same_weights(checkpoint.load(folder), model)

    mx.save_safetensors(str(folder / "model-3.safetensors"), {"wte.weight": tensors["wte.weight"]})
    index.write_text(json.dumps({"weight_map": files | {"more": "model-3.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-3\.safetensors: wte\.weight is in another file too"):
        checkpoint.load(folder)
    index.write_text(json.dumps({"weight_map": files | {"more": "model-4.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-4\.safetensors cannot be read"):
        checkpoint.load(folder)
    for wrong in ({"wte.weight": "../model.safetensors"}, {"wte.weight": 3}, []):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ValueError, match="weight_map must map names to files beside it"):
            checkpoint.load(folder)


def test_a_pickle_is_refused_with_the_way_out(saved):
    _, folder = saved
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pickles \(\.bin, \.pt\) are not opened.* transformers.*save_pretrained"
    ) as error:
        checkpoint.load(folder)
    assert "\n" not in str(error.value)


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


def test_pruning_touches_nothing_but_the_runs_own(tmp_path, small):
    for number in (1, 2, 3, 4):
        checkpoint.save(tmp_path / checkpoint.name_of(number), GPT2(small))
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000001-keep")
    (tmp_path / "step-0-notes.txt").write_text("mine")
    (tmp_path / "step-00000000").symlink_to("step-00000004")
    checkpoint.prune(tmp_path, keep=2)
    left = {path.name for path in tmp_path.iterdir()}
    own = {"step-00000003", "step-00000004"}
    assert left == own | {"step-00000001-keep", "step-0-notes.txt", "step-00000000"}


def whole(folder, small) -> None:
    checkpoint.save(folder, GPT2(small), {"m": mx.zeros(1)}, {"step": checkpoint.step(folder.name)})


def test_without_a_link_the_newest_whole_checkpoint_is_gone_on_from(tmp_path, small):
    assert checkpoint.to_resume(tmp_path) is None
    for number in (2, 10, 9):
        whole(tmp_path / checkpoint.name_of(number), small)
    assert checkpoint.to_resume(tmp_path).name == "step-00000010"
    checkpoint.mark(tmp_path, "latest", tmp_path / "step-00000002")
    assert checkpoint.to_resume(tmp_path).resolve().name == "step-00000002"
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("step-00000099")
    (tmp_path / "step-00000010" / "state.json").unlink()
    assert checkpoint.to_resume(tmp_path).name == "step-00000009"


def test_on_a_disk_without_links_a_file_tells_the_name(tmp_path, small, monkeypatch):
    run = tmp_path / "run"

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for number in (1, 2):
        whole(run / checkpoint.name_of(number), small)
        checkpoint.mark(run, "latest", run / checkpoint.name_of(number))
    checkpoint.mark(run, "best", run / "step-00000001")
    assert (run / "latest").read_text() == "step-00000002"
    assert checkpoint.resolve(run) == run / "step-00000001"
    assert checkpoint.resolve(run / "latest") == checkpoint.to_resume(run) == run / "step-00000002"
    assert checkpoint.newest_run(tmp_path) == run
    checkpoint.prune(run, keep=1)
    assert len(checkpoint.all_of(run)) == 2


def test_weights_lie_in_order(saved):
    """The file holds (in, out); as (out, in) views of it products are slower."""
    model, folder = saved
    loaded = dict(tree_flatten(checkpoint.load(folder).parameters()))
    assert all(memoryview(p).c_contiguous for p in loaded.values())
    assert all((loaded[name] == p).all() for name, p in tree_flatten(model.parameters()))
