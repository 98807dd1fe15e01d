"""Save and load a checkpoint folder: the Hugging Face GPT-2 layout, and beside it what only training needs.

`config.json` and `model.safetensors` are laid out as in `openai-community/gpt2`: tensors without a prefix, the four
projections of a block stored (in, out), the head left out since it is tied to `wte.weight`.
"""

import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from . import tokenizer
from .config import GPT2Config
from .files import link, new_folder, remove_folder
from .model import GPT2, LAYER_NORM_EPSILON

# Fields of config.json that change the mathematics, and the values that mean GPT-2's.
_ALLOWED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (LAYER_NORM_EPSILON,),
    "tie_word_embeddings": (True,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}
_STORED_IN_OUT = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def save(folder: Path, model: GPT2, optimizer_state: dict | None = None, state: dict | None = None) -> None:
    """Write a checkpoint folder; it appears whole, under its final name, or not at all.

    Args:
        folder: where to.
        model: its parameters are stored in their own dtype.
        optimizer_state: a tree of arrays, stored as optimizer.safetensors.
        state: what else a resumed run needs, stored as state.json.
    """
    with new_folder(folder) as aside:
        weights = {name: _transposed(name, array) for name, array in tree_flatten(model.parameters())}
        _write_arrays(aside / "model.safetensors", weights)
        dtype = str(model.wte.weight.dtype).removeprefix("mlx.core.")
        _write_json(aside / "config.json", hf_config(model.config) | {"torch_dtype": dtype})
        _write_json(aside / "generation_config.json", {"bos_token_id": tokenizer.EOT, "eos_token_id": tokenizer.EOT})
        _write_json(
            aside / "tokenizer_config.json",
            {"tokenizer_class": "GPT2Tokenizer", "model_max_length": model.config.block_size}
            | {f"{kind}_token": "<|endoftext|>" for kind in ("bos", "eos", "unk")},
        )
        shutil.copyfile(tokenizer.ASSETS / "encoder.json", aside / "vocab.json")
        shutil.copyfile(tokenizer.ASSETS / "vocab.bpe", aside / "merges.txt")
        if optimizer_state is not None:
            _write_arrays(aside / "optimizer.safetensors", dict(tree_flatten(optimizer_state)))
        if state is not None:
            _write_json(aside / "state.json", state)


def load(folder: Path, dtype: str = "float32") -> GPT2:
    """The model of a checkpoint folder, its weights evaluated, in "float32", "bfloat16" or "float16".

    Raises:
        ValueError: a file is missing or broken, or the tensors are not exactly those of the configuration; the
            message names them.
    """
    config = read_config(folder)
    model = GPT2(config)
    load_weights(folder, model)
    model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    return model


def load_weights(folder: Path, model: GPT2) -> None:
    """Put a checkpoint's weights into a model of the same shape. Raises as `load`."""
    path = folder / "model.safetensors"
    weights = {name: _transposed(name, array) for name, array in _read_arrays(path).items()}
    expected = {name: array.shape for name, array in tree_flatten(model.parameters())}
    check_tensors(path, {name: array.shape for name, array in weights.items()}, expected)
    model.update(tree_unflatten(list(weights.items())))
    mx.eval(model.parameters())


def load_training(folder: Path, optimizer_state: dict) -> tuple[dict, dict]:
    """The optimizer's state, a tree like `optimizer_state`, and the content of state.json. Raises as `load`."""
    path = folder / "optimizer.safetensors"
    arrays = _read_arrays(path)
    expected = {name: array.shape for name, array in tree_flatten(optimizer_state)}
    check_tensors(path, {name: array.shape for name, array in arrays.items()}, expected)
    mx.eval(arrays)
    return tree_unflatten(list(arrays.items())), _read_json(folder / "state.json")


def resolve(path: Path) -> Path:
    """The checkpoint folder behind a path: the folder itself, or of a run its best or else its latest one.

    Raises:
        ValueError: there is none.
    """
    for folder in (path, path / "best", path / "latest"):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(f"{path} is neither a checkpoint (no config.json) nor a run with one")


def step(name: str) -> int | None:
    """The step in the name of a run's checkpoint, "step-00000300"; None for other names."""
    number = name.removeprefix("step-")
    return int(number) if number != name and number.isdecimal() else None


def newest_run(folder: Path, file: str = "latest/config.json") -> Path:
    """The run below a folder whose `file` is the newest; by default the one that saved a checkpoint last.

    Raises:
        ValueError: there is none.
    """
    runs = [run for run in folder.glob("*") if (run / file).is_file()]
    if not runs:
        raise ValueError(f"there is no run under {folder}/: train one first with `python train.py`, or name one")
    return max(runs, key=lambda run: (run / file).stat().st_mtime)


def prune(run: Path, keep: int) -> None:
    """Delete a run's checkpoints but the newest `keep` and those that `latest` and `best` point to."""
    linked = {(run / name).resolve().name for name in ("latest", "best")}
    for folder in sorted(run.glob("step-*"))[:-keep]:
        if folder.name not in linked:
            remove_folder(folder)


def mark(run: Path, name: str, folder: Path) -> None:
    """Point the run's link `latest` or `best` to one of its checkpoints."""
    link(run / name, folder.name)


def hf_config(config: GPT2Config) -> dict:
    """The content of config.json for Hugging Face's GPT2LMHeadModel."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "initializer_range": 0.02,
        "bos_token_id": tokenizer.EOT,
        "eos_token_id": tokenizer.EOT,
        "tie_word_embeddings": True,
    }


def read_config(folder: Path) -> GPT2Config:
    """The GPT2Config behind a config.json. Raises a ValueError that names a missing or impossible field."""
    path = folder / "config.json"
    fields = _read_json(path)
    if fields.get("model_type") != "gpt2":
        raise ValueError(f"{path}: model_type is {fields.get('model_type')!r}; it must be 'gpt2'")
    for name, allowed in _ALLOWED.items():
        if fields.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {name} is {fields[name]!r}; this model has {allowed[0]!r}")
    if fields.get("n_inner") not in (None, 4 * fields.get("n_embd", 0)):
        raise ValueError(f"{path}: n_inner is {fields['n_inner']}; this model has 4 n_embd")
    try:
        return GPT2Config(
            block_size=fields["n_positions"],
            vocab_size=fields["vocab_size"],
            n_layer=fields["n_layer"],
            n_head=fields["n_head"],
            n_embd=fields["n_embd"],
            dropout=fields.get("resid_pdrop") or 0.0,
        )
    except KeyError as error:
        raise ValueError(f"{path} has no {error.args[0]}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_tensors(path: Path, found: dict[str, tuple], expected: dict[str, tuple]) -> None:
    """Raise a ValueError that names every tensor that is missing, not expected or of another shape."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not expected" for name in found if name not in expected]
    problems += [
        f"{name} is {tuple(found[name])}, not {tuple(expected[name])}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")


def _transposed(name: str, array: mx.array) -> mx.array:
    return array.T if name.endswith(_STORED_IN_OUT) else array


def _read_arrays(path: Path) -> dict[str, mx.array]:
    try:
        return mx.load(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _write_arrays(path: Path, arrays: dict[str, mx.array]) -> None:
    try:
        mx.save_safetensors(str(path), arrays, metadata={"format": "pt"})  # transformers asks for a format
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from None


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return content


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
