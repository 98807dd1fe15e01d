"""A model or an adapter as a GGUF file, which llama.cpp, Ollama and LM Studio open."""

from contextlib import closing
from pathlib import Path

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, LlamaFileType, TokenType
from mlx.utils import tree_flatten

from . import quantized
from .files import new_file
from .model import GPT2, LAYER_NORM_EPSILON
from .tokenizer import Vocabulary

# How the matrices are stored, by the model's dtype or by bits, and what a file of these is called.
_KINDS = {
    mx.float32: (Kind.F32, LlamaFileType.ALL_F32),
    mx.float16: (Kind.F16, LlamaFileType.MOSTLY_F16),
    mx.bfloat16: (Kind.BF16, LlamaFileType.MOSTLY_BF16),
    8: (Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    4: (Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
_BLOCK = 32  # weights of a row that share a scale in Q8_0 and Q4_0
_NO_MERGE = "<none> <none>"  # llama.cpp asks for one merge at least; this one never applies: no other makes its parts


def save(path: Path, model: GPT2, vocabulary: Vocabulary, quantize: int | None = None) -> None:
    """Write a model and its vocabulary as a GGUF file; it appears whole or not at all.

    Matrices are stored in the model's dtype, or rounded to 8 bits (Q8_0) or 4 (Q4_0; the embedding in Q8_0, since it is
    the head, too). Positions, LayerNorms and biases are float32. What MLX has quantised is multiplied out. Tensors are
    made one by one, so that memory holds the model once.

    Args:
        path: the file; one that was there before is replaced.
        model: its parameters evaluated.
        vocabulary: the model's; ids that it has beyond it are padding.
        quantize: 8 or 4 bits per weight.

    Raises:
        ValueError: the vocabulary has more tokens than the model, or, with `quantize`, n_embd is no multiple of 32.
    """
    vocab_size = model.config.vocab_size
    if vocabulary.size > vocab_size:
        raise ValueError(f"the vocabulary has {vocabulary.size} tokens, but the model knows {vocab_size}")
    arrays = _tensors(model)
    kinds = {name: _kind(name, array, quantize or model.dtype) for name, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as aside, closing(GGUFWriter(aside, "gpt2")) as writer:
        writer.add_name(path.stem)
        writer.add_file_type(_KINDS[quantize or model.dtype][1])
        _add_shape(writer, model)
        _add_vocabulary(writer, vocabulary, vocab_size)
        for name, array in arrays.items():
            per_block, size = gguf.GGML_QUANT_SIZES[kinds[name]]
            writer.add_tensor_info(name, array.shape, np.dtype("float32"), array.size // per_block * size, kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in list(arrays):
            array = np.array(arrays.pop(name).astype(mx.float32))
            writer.write_tensor_data(gguf.quantize(array, kinds[name]))


def save_adapter(path: Path, arrays: dict[str, mx.array], scale: float, n_layer: int) -> None:
    """Write an adapter as a GGUF file for `llama-cli --lora`, in float32; it appears whole or not at all.

    `arrays` and `scale` are those that `adapter.read` gives, `n_layer` is the number of the base's blocks.
    """
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, n_layer)
    rank = next(array.shape[1] for name, array in arrays.items() if name.endswith("lora_a"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as aside, closing(GGUFWriter(aside, "gpt2")) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(path.stem)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, scale * rank)  # llama.cpp divides by the rank
        for name, array in arrays.items():
            layer, _, which = name.rpartition(".")
            array = mx.contiguous(array.astype(mx.float32).T)  # a (in, r) -> (r, in), b (r, out) -> (out, r)
            writer.add_tensor(f"{names.get_name(layer)}.weight.{which}", np.array(array))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _add_shape(writer: GGUFWriter, model: GPT2) -> None:
    config = model.config
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(LAYER_NORM_EPSILON)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _tensors(model: GPT2) -> dict[str, mx.array]:
    """The parameters by llama.cpp's names, matrices (out, in). Those that MLX has quantised are not yet evaluated."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    found = {}
    for path, layer in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        plain = {"weight": quantized.weight(layer)} | ({"bias": layer.bias} if "bias" in layer else {})
        found |= {f"{names.get_name(path)}.{kind}": array for kind, array in plain.items()}
    return found


def _kind(name: str, array: mx.array, stored: mx.Dtype | int) -> Kind:
    if array.ndim == 1 or name == "position_embd.weight":
        return Kind.F32
    if stored in (8, 4) and array.shape[1] % _BLOCK:
        raise ValueError(f"n_embd is {array.shape[1]}; to be quantised it must be a multiple of {_BLOCK}")
    return Kind.Q8_0 if stored == 4 and name == "token_embd.weight" else _KINDS[stored][0]


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, vocab_size: int) -> None:
    padding = [f"[PAD{id}]" for id in range(vocabulary.size, vocab_size)]  # ids that only the model has
    types = [TokenType.NORMAL] * vocabulary.size + [TokenType.UNUSED] * len(padding)
    types[vocabulary.eot] = TokenType.CONTROL
    _, *merges = vocabulary.merges.splitlines()  # without the header
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")  # the regular expression that cuts a text into words
    writer.add_token_list([*vocabulary.ids, *padding])
    writer.add_token_types(types)
    writer.add_token_merges(merges or [_NO_MERGE])
    writer.add_bos_token_id(vocabulary.eot)
    writer.add_eos_token_id(vocabulary.eot)
    writer.add_add_bos_token(False)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)
