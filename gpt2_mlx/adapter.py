"""An adapter's folder, as peft and mlx-lm lay it out: a file for each, and one adapter_config.json for both.

peft has `base_model.model.transformer.h.0.attn.c_attn.lora_A.weight` (r, in) and `lora_B` (out, r); mlx-lm has
`model.h.0.attn.c_attn.lora_a` (in, r) and `lora_b` (r, out), as this program computes with them.
"""

import math
import re
from hashlib import sha256
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from . import layout
from .arrays import named, read_arrays, write_arrays
from .files import read_json, sha256_of_each, write_json
from .lora import TARGETS, LoRA
from .model import GPT2

CONFIG = "adapter_config.json"
PEFT, MLX_LM = FILES = ("adapter_model.safetensors", "adapters.safetensors")
_OURS = "gpt2_mlx"  # the field of adapter_config.json that holds what the others have no field for
_NAMES = {
    PEFT: r"base_model\.model\.transformer\.(h\.\d+\.\w+\.\w+)\.lora_([AB])\.weight",
    MLX_LM: r"model\.(h\.\d+\.\w+\.\w+)\.lora_([ab])",
}
# Fields of peft that change the mathematics, and their values that mean plain LoRA.
_PLAIN = {"peft_type": ("LORA",), "bias": ("none",), "use_dora": (False, None), "modules_to_save": ([], None)}
_PLAIN |= {"rank_pattern": ({}, None), "alpha_pattern": ({}, None), "lora_bias": (False, None)}


def is_in(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def write(folder: Path, model: GPT2) -> None:
    """Write the adapter of a model into a folder."""
    arrays = dict(tree_flatten(model.trainable_parameters()))
    write_arrays(folder / MLX_LM, {f"model.{name}": array for name, array in arrays.items()})
    peft = {re.sub("_[ab]$", lambda m: m[0].upper(), name): array.T for name, array in arrays.items()}
    write_arrays(folder / PEFT, {f"base_model.model.transformer.{name}.weight": a for name, a in peft.items()})
    write_json(folder / CONFIG, _fields(model.lora, model.config.n_layer))


def _fields(lora: LoRA, n_layer: int) -> dict:
    """The content of adapter_config.json."""
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lora.base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "fan_in_fan_out": True,  # the stored projections are (in, out)
        "bias": "none",
        "inference_mode": True,
        "fine_tune_type": "lora",
        "num_layers": lora.layers,
        "lora_parameters": {
            "rank": lora.rank,
            "scale": lora.scale,
            "dropout": lora.dropout,
            "keys": list(lora.targets),
        },
        _OURS: {"base_sha256": lora.sha256, "quantize": lora.quantize, "dtype": lora.dtype},
    }
    if lora.layers < n_layer:
        fields |= {"layers_to_transform": list(range(n_layer - lora.layers, n_layer)), "layers_pattern": "h"}
    return fields


def base(folder: Path) -> tuple[str, str | None]:
    """The name or folder of the base that an adapter was made for, and the SHA-256 of its weights where that is known.

    Raises a ValueError where its adapter_config.json names none.
    """
    fields = read_json(folder / CONFIG)
    name = fields.get("base_model_name_or_path") or fields.get("model")  # mlx-lm's
    if not isinstance(name, str):
        raise ValueError(f"{folder / CONFIG} names no base: write it there as base_model_name_or_path")
    return name, _ours(fields).get("base_sha256")


def rounding(folder: Path) -> tuple[int | None, str]:
    """The bits to which the blocks of the base were rounded while the adapter learned (None: not), and the type."""
    ours = _ours(read_json(folder / CONFIG))
    bits, dtype = ours.get("quantize"), ours.get("dtype", "float32")
    if bits not in (None, 8, 4) or dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"{folder / CONFIG}: quantize is {bits!r} and dtype is {dtype!r}; no run has these")
    return bits, dtype


def _ours(fields: dict) -> dict:
    found = fields.get(_OURS)
    return found if isinstance(found, dict) else {}


def fingerprint(base: Path) -> str:
    """The SHA-256 of the weights of a base: that of model.safetensors, or of the list of those of its files."""
    files = sorted(base.glob("model*.safetensors"))
    digests = sha256_of_each(files)
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


def read(folder: Path, model: GPT2) -> tuple[dict[str, mx.array], float]:
    """The `lora_a` and `lora_b` of an adapter by their names in a model with the shape of `model`, and their scale.

    Raises a ValueError where it is no LoRA of the projections of this model, or a file is broken.
    """
    path, found = stored(folder)
    with named(folder / CONFIG):
        scale = _scale(read_json(folder / CONFIG), path.name)
    with named(path):
        ranks = [array.shape[-1] for name, array in found.items() if name.endswith("lora_a") and array.ndim == 2]
        layout.check(found, _expected(found, model, ranks[0] if ranks else 0))
        bad = [f"{name} holds values that are not finite" for name, a in found.items() if not mx.isfinite(a).all()]
        layout.refuse(bad)
    return found, scale


def stored(folder: Path) -> tuple[Path, dict[str, mx.array]]:
    """The file of an adapter, and its arrays by our names and in our shapes; they are read when they are evaluated."""
    file = next((name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder} has {CONFIG}, but neither {' nor '.join(FILES)}")
    found = {}
    for name, array in read_arrays(folder / file).items():
        match = re.fullmatch(_NAMES[file], name)
        found[f"{match[1]}.lora_{match[2].lower()}" if match else name] = array.T if file == PEFT else array
    return folder / file, found


def _scale(fields: dict, file: str) -> float:
    """What an adapter is multiplied by. Raises a ValueError where it is no plain LoRA."""
    if file == MLX_LM:
        if fields.get("fine_tune_type", "lora") != "lora":
            raise ValueError(f"fine_tune_type is {fields['fine_tune_type']!r}; it must be 'lora'")
        scale = (fields.get("lora_parameters") or {}).get("scale")
    else:
        for name, allowed in _PLAIN.items():
            if fields.get(name, allowed[0]) not in allowed:
                raise ValueError(f"{name} is {fields[name]!r}; it must be {allowed[0]!r}")
        rank, alpha = fields.get("r"), fields.get("lora_alpha")
        if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or rank < 1:
            raise ValueError(f"r is {rank!r} and lora_alpha is {alpha!r}; they must be numbers")
        scale = alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank)
    if not isinstance(scale, (int, float)):
        raise ValueError(f"lora_parameters has the scale {scale!r}; it must be a number")
    return scale


def _expected(found: dict[str, mx.array], model: GPT2, rank: int) -> dict[str, mx.array]:
    """Arrays of the shapes that an adapter of these projections has, if the model has them."""
    C, expected = model.config.n_embd, {}
    for i in range(model.config.n_layer):
        for target, (n_in, n_out) in TARGETS.items():
            name = f"h.{i}.{target}.lora_"
            if {f"{name}a", f"{name}b"} & found.keys():
                expected |= {f"{name}a": mx.zeros((n_in * C, rank)), f"{name}b": mx.zeros((rank, n_out * C))}
    return expected or {"h.0.attn.c_attn.lora_a": mx.zeros((C, 1))}


def restore(folder: Path, model: GPT2) -> None:
    """Put the adapter of a folder into a model that has one of the same shape. Raises as `read`."""
    found, _ = read(folder, model)
    with named(folder):
        layout.check(found, dict(tree_flatten(model.trainable_parameters())))
    model.update(tree_unflatten([(name, mx.contiguous(array)) for name, array in found.items()]))
    mx.eval(model.trainable_parameters())
