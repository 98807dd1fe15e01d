"""How a GPT-2 is stored: the fields of config.json and the tensors of model.safetensors, to and from a model.

There are two layouts. In Hugging Face's, names begin with `transformer.` or with no prefix, and the four projections of
a block are stored (in, out). In mlx-lm's, which a quantised model has, names begin with `model.`, and all matrices are
stored (out, in), as MLX multiplies with them. Both leave out the head, since it is tied to `wte.weight`.
"""

import mlx.core as mx
from mlx.utils import tree_flatten

from .config import GPT2Config
from .model import GPT2, LAYER_NORM_EPSILON

# Fields that change the mathematics, and their values that mean GPT-2's.
_ALLOWED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (LAYER_NORM_EPSILON,),
    "tie_word_embeddings": (True,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_QUANTIZATIONS = {"group_size": (32, 64, 128), "bits": (2, 3, 4, 5, 6, 8), "mode": ("affine",)}
_STORED_IN_OUT = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_MLX_LM = "model."  # the prefix tells the layout
_HEAD = "lm_head.weight"
_TOLD = 5  # the number of problems that an error names; it counts the others


def config_fields(model: GPT2) -> dict:
    """The content of config.json."""
    config = model.config
    fields = {
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
        "tie_word_embeddings": True,
        "torch_dtype": str(model.dtype).removeprefix("mlx.core."),
    }
    if model.quantization and not model.lora:  # the second name tells transformers that it cannot open this
        fields |= {"quantization": model.quantization, "quantization_config": model.quantization}
    return fields


def read_config(fields: dict) -> GPT2Config:
    """The architecture that the content of a config.json describes.

    Raises a ValueError where a field is missing, is impossible or changes GPT-2's mathematics.
    """
    if fields.get("model_type") != "gpt2":
        raise ValueError(f"model_type is {fields.get('model_type')!r}; it must be 'gpt2'")
    for name, allowed in _ALLOWED.items():
        if fields.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{name} is {fields[name]!r}; this model has {allowed[0]!r}")
    try:
        shape = [fields[name] for name in ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")]
        config = GPT2Config(*shape, dropout=fields.get("resid_pdrop") or 0.0)
    except KeyError as error:
        raise ValueError(f"it has no {error.args[0]}") from None
    if fields.get("n_inner") not in (None, 4 * config.n_embd):
        raise ValueError(f"n_inner is {fields['n_inner']!r}; this model has 4 n_embd, which is {4 * config.n_embd}")
    return config


def read_quantization(fields: dict) -> dict | None:
    """The arguments of `nn.quantize` for the content of a config.json; None where the model is not quantised.

    Raises a ValueError where it is quantised in a way that is not supported.
    """
    found = fields.get("quantization")
    if found is None:
        if "quantization_config" in fields:
            raise ValueError(f"quantization_config is {fields['quantization_config']!r}; only MLX's own is supported")
        return None
    whole = {"mode": "affine", **found} if isinstance(found, dict) else {}
    if whole.keys() != _QUANTIZATIONS.keys() or any(value not in _QUANTIZATIONS[name] for name, value in whole.items()):
        raise ValueError(
            f"quantization is {found!r}; allowed: a group_size of 32, 64 or 128, 2, 3, 4, 5, 6 or 8 bits,"
            " mode affine, the same for all layers"
        )
    return found


def tensors(model: GPT2) -> dict[str, mx.array]:
    """The content of model.safetensors, by name: in Hugging Face's layout, or in mlx-lm's for a quantised model."""
    return _tensors(model, _MLX_LM if model.quantization else "")


def parameters(stored: dict[str, mx.array], model: GPT2) -> dict[str, mx.array]:
    """The parameters of a model shaped like `model`, by name, from tensors in either layout.

    Causal masks, which old files hold, are left out, and so is a head that equals `wte.weight`. Raises as `check`.
    """
    prefix = next((p for p in ("transformer.", _MLX_LM) if f"{p}wte.weight" in stored), "")
    masks = {f"{prefix}h.{i}.attn.{name}" for i in range(model.config.n_layer) for name in ("bias", "masked_bias")}
    found = {name: array for name, array in stored.items() if name not in {*masks, _HEAD}}
    check(found, _tensors(model, prefix))
    wte = found[f"{prefix}wte.weight"]
    head = stored.get(_HEAD)
    if head is not None and not mx.array_equal(head, wte, equal_nan=True):
        raise ValueError(f"{_HEAD} is not wte.weight, to which this model's head is tied")
    return {name.removeprefix(prefix): _transposed(name, array, prefix) for name, array in found.items()}


def _tensors(model: GPT2, prefix: str) -> dict[str, mx.array]:
    parameters = tree_flatten(model.parameters())
    return {prefix + name: _transposed(name, array, prefix) for name, array in parameters}


def _transposed(name: str, array: mx.array, prefix: str) -> mx.array:
    """The array, transposed where the layout stores it (in, out): from the model to the layout, or back."""
    return array.T if prefix != _MLX_LM and name.endswith(_STORED_IN_OUT) else array


def check(found: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    """Raise a ValueError that names the arrays that are missing, not expected, or of another shape or kind of dtype."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not expected" for name in sorted(found) if name not in expected]
    for name, b in expected.items():
        a = found.get(name, b)
        if a.shape != b.shape:
            problems.append(f"{name} is {a.shape}, not {b.shape}")
        elif mx.issubdtype(a.dtype, mx.floating) != mx.issubdtype(b.dtype, mx.floating):
            problems.append(f"{name} is {a.dtype}, not {b.dtype}")
    refuse(problems)


def refuse(problems: list[str]) -> None:
    """Raise a ValueError that names the first problems and counts the others; nothing where there is no problem."""
    if problems:
        more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
        raise ValueError("; ".join(problems[:_TOLD]) + more)
