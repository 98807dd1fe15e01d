"""A GGUF file read back with the package's own reader. tests/parity has llama.cpp open it."""

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from mlx.utils import tree_flatten, tree_map

from gpt2_mlx import GPT2, GPT2Config, gguf, tokenizer

WORDS = tokenizer.of_merges([("a", "b")])  # 256 bytes, "ab", <|endoftext|>
NAMES = {  # llama.cpp's (src/llama-arch.cpp) for ours
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


@pytest.fixture
def model() -> GPT2:
    """A model none of whose parameters is at its initial zero or one."""
    model = GPT2(GPT2Config(block_size=10, vocab_size=260, n_layer=2, n_head=2, n_embd=32), seed=1)
    model.update(tree_map(lambda p: p + 0.1 * mx.random.normal(p.shape, key=mx.random.key(p.size)), model.parameters()))
    return model


def read(path) -> tuple[dict, dict]:
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def ours(name: str) -> str:
    """Our name of llama.cpp's "blk.0.attn_qkv.weight"."""
    block, (part, kind) = name.split(".")[:-2], name.split(".")[-2:]
    return ".".join([*block, NAMES[part], kind]).replace("blk", "h")


def test_the_keys_that_llama_cpp_reads(model, tmp_path):
    gguf.save(tmp_path / "verse.gguf", model, WORDS)
    assert read(tmp_path / "verse.gguf")[0] == {
        "general.architecture": "gpt2",
        "general.name": "verse",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "gpt2.block_count": 2,
        "gpt2.context_length": 10,
        "gpt2.embedding_length": 32,
        "gpt2.feed_forward_length": 128,
        "gpt2.attention.head_count": 2,
        "gpt2.attention.layer_norm_epsilon": pytest.approx(1e-5),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*list(tokenizer.gpt2().ids)[:256], "ab", "<|endoftext|>", "[PAD258]", "[PAD259]"],
        "tokenizer.ggml.token_type": [1] * 257 + [3, 5, 5],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.add_bos_token": False,
    }


@pytest.mark.parametrize(("dtype", "kind"), [("float32", Kind.F32), ("float16", Kind.F16), ("bfloat16", Kind.BF16)])
def test_every_weight_is_there_once_and_unchanged(model, tmp_path, dtype, kind):
    model.set_dtype(getattr(mx, dtype))
    gguf.save(tmp_path / "m.gguf", model, WORDS)
    _, tensors = read(tmp_path / "m.gguf")
    parameters = dict(tree_flatten(model.parameters()))
    assert sorted(map(ours, tensors)) == sorted(parameters)
    for name, tensor in tensors.items():
        array = parameters[ours(name)]
        is_matrix = array.ndim == 2 and name != "position_embd.weight"
        assert tensor.tensor_type == (kind if is_matrix else Kind.F32), name
        assert tuple(tensor.shape) == array.shape[::-1]  # the fastest first
        data = tensor.data
        if tensor.tensor_type == Kind.BF16:
            data = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        assert (data.reshape(array.shape) == np.array(array.astype(mx.float32))).all(), name


@pytest.mark.parametrize(("bits", "kind"), [(8, Kind.Q8_0), (4, Kind.Q4_0)])
def test_a_rounded_weight_is_off_by_no_more_than_its_block_allows(model, tmp_path, bits, kind):
    gguf.save(tmp_path / "m.gguf", model, WORDS, bits)
    fields, tensors = read(tmp_path / "m.gguf")
    assert fields["general.file_type"] == {8: 7, 4: 2}[bits]
    for name, array in tree_flatten(model.parameters()):
        tensor = next(tensor for theirs, tensor in tensors.items() if ours(theirs) == name)
        if array.ndim == 1 or name == "wpe.weight":
            assert tensor.tensor_type == Kind.F32
            continue
        expected = Kind.Q8_0 if name == "wte.weight" else kind  # the head is the embedding
        assert tensor.tensor_type == expected
        blocks = tensor.data.reshape(-1, 34 if expected == Kind.Q8_0 else 18)  # of 32 weights: a float16, the integers
        scale, packed = blocks[:, :2].copy().view(np.float16).astype(np.float32), blocks[:, 2:]
        if expected == Kind.Q8_0:
            steps = packed.view(np.int8).astype(np.float32)
        else:
            steps = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) - 8
        off = np.abs(scale * steps - np.array(array).reshape(-1, 32))
        # half a step; in 4 bits a whole one at the end that has no code; float16 rounds the scale
        assert (off <= np.abs(scale) * ((0.5 if expected == Kind.Q8_0 else 1) + 0.1)).all(), name


@pytest.mark.parametrize("bits", [8, 4])
def test_what_mlx_has_quantised_is_multiplied_out(model, tmp_path, bits):
    model.quantize(bits)
    gguf.save(tmp_path / "m.gguf", model, WORDS)
    _, tensors = read(tmp_path / "m.gguf")
    for name, layer in (("token_embd", model.wte), ("blk.1.ffn_down", model.h[1].mlp.c_proj)):
        expected = mx.dequantize(layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits)
        assert (tensors[f"{name}.weight"].data == np.array(expected)).all()
    assert "blk.1.ffn_down.bias" in tensors and not any("scales" in name or "biases" in name for name in tensors)


def test_gpt2s_vocabulary(tmp_path):
    gguf.save(tmp_path / "m.gguf", GPT2(GPT2Config(block_size=4, n_layer=1, n_head=1, n_embd=4)), tokenizer.gpt2())
    fields, _ = read(tmp_path / "m.gguf")
    tokens, merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
    assert len(tokens) == 50257 and tokens[50256] == "<|endoftext|>" and tokens[262] == "Ġthe"
    assert len(merges) == 50000 and merges[0] == "Ġ t" and merges[-1] == "Ġg azed"
    assert fields["tokenizer.ggml.token_type"][-2:] == [1, 3]
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.eos_token_id"] == 50256


def test_a_vocabulary_without_merges_gets_one_that_no_text_meets(model, tmp_path):
    gguf.save(tmp_path / "m.gguf", model, tokenizer.of_merges([]))
    (merge,) = read(tmp_path / "m.gguf")[0]["tokenizer.ggml.merges"]
    left, right = merge.split(" ")
    assert len(left) > 1 and len(right) > 1  # a text is bytes, and no other merge makes more of them


def test_a_vocabulary_that_the_model_does_not_know(small, tmp_path):
    with pytest.raises(ValueError, match="the vocabulary has 258 tokens, but the model knows 61"):
        gguf.save(tmp_path / "m.gguf", GPT2(small), WORDS)
    assert not list(tmp_path.iterdir())


def test_a_width_that_has_no_whole_blocks(tmp_path):
    with pytest.raises(ValueError, match="n_embd is 12; to be quantised it must be a multiple of 32"):
        gguf.save(tmp_path / "m.gguf", GPT2(GPT2Config(block_size=4, n_layer=1, n_head=1, n_embd=12)), WORDS, 8)


def test_an_adapter_has_the_keys_and_the_shapes_that_llama_cpp_asks_for(tmp_path):
    arrays = {
        "h.1.mlp.c_proj.lora_a": mx.random.normal((128, 4), key=mx.random.key(1)),
        "h.1.mlp.c_proj.lora_b": mx.random.normal((4, 32), key=mx.random.key(2)).astype(mx.bfloat16),
    }
    gguf.save_adapter(tmp_path / "poet.gguf", arrays, 0.75, n_layer=2)
    fields, tensors = read(tmp_path / "poet.gguf")
    assert fields == {
        "general.architecture": "gpt2",
        "general.type": "adapter",
        "general.name": "poet",
        "adapter.type": "lora",
        "adapter.lora.alpha": 3.0,  # of rank 4
    }
    assert sorted(tensors) == ["blk.1.ffn_down.weight.lora_a", "blk.1.ffn_down.weight.lora_b"]
    for name, array in arrays.items():
        tensor = tensors[f"blk.1.ffn_down.weight.{name[-6:]}"]
        assert tensor.tensor_type == Kind.F32 and tuple(tensor.shape) == array.shape  # the fastest first
        assert (tensor.data == np.array(array.T.astype(mx.float32))).all()


def test_a_file_appears_whole_or_not_at_all(model, tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"the old one")

    def stop(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", stop)
    with pytest.raises(OSError, match="No space left"):
        gguf.save(tmp_path / "m.gguf", model, WORDS)
    assert (tmp_path / "m.gguf").read_bytes() == b"the old one"
    assert not list(tmp_path.glob(".*.tmp"))
