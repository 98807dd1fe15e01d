"""The memory that a step takes, by calculation.

Shapes: B windows per micro-batch, T block_size, C n_embd, H n_head, L n_layer, V vocab_size; 4 bytes a number.
"""

from .. import device
from ..lora import TARGETS
from .config import TrainConfig

Usage = dict[str, float]  # bytes, by the name of what holds them

# Fitted to peaks measured on the CPU, over models of 4 to 12 layers, 128 to 768 wide, windows of 128 to 1,024 tokens.
_KEPT_PER_CHANNEL = 31  # numbers that a block keeps for the backward pass, per token and channel
_BUFFERS_PER_PART = 2.5  # (n, V) arrays of a part of the loss: logits, their exponentials, half of the next part's
_BUFFERS_PER_PART_ON_GPU = 4  # of two parts, since a GPU's command buffers run ahead and hold what they read
_KEPT_IN_16_BITS = 0.7  # of the bytes kept in float32; softmax, norms and GELU keep some numbers in float32
_BLOCKS_AT_WORK = 3  # blocks' activations in the backward pass: the kept ones, their gradients, the next block's
_SCORES_AT_WORK = 5  # the same for attention scores
_TABLES_OF_SUMS = 1.5  # of wte's size, where its gradient is added to the sums of earlier micro-batches
_TABLES_ON_GPU = 1.5  # of wte's size, since a GPU's command buffers run ahead
_QUANTIZED_GROUP = 64  # weights that share a scale and an offset
_MUON_COPIES = 3  # of a part's matrices, which Muon makes orthogonal at once


def predict(config: TrainConfig, processes: int = 1) -> Usage:
    """What holds memory at the peak of a step, for resolved settings; the sum is the peak.

    The peak is one of three moments: in the loss, when all activations are kept; at the end of the backward pass, when
    all gradients exist and that of wte is added up; or in the update, which writes weights and moments in their place.
    """
    if config.lora_rank:
        return _predict_adapter(config, processes)
    model = config.model_config()
    L, C, T, V = model.n_layer, model.n_embd, model.block_size, model.vocab_size
    blocks, table = 4 * 12 * L * C * C, 4 * V * C  # bytes of the blocks' matrices, and of wte
    weights = blocks + table + 4 * (T * C + 13 * L * C + 2 * C)
    streams = device.n_streams(config.batch_size)
    lowered = 0 if config.dtype == "float32" else streams * blocks / 2  # each stream's copy in 16 bits
    is_muon = config.optimizer == "muon"
    several = config.grad_accum_steps > processes  # micro-batches per process: the sum of their gradients is kept, too
    moments = 2 * weights - is_muon * blocks
    states = {"weights": weights + lowered, "moments": moments}
    kept, scores = _activations(config)
    rows = min(device.logits_rows(V), config.batch_size // streams * T)
    loss = {
        **states,
        "gradients": weights * several + streams * table,
        "activations": L * (4 * config.batch_size * T * C if config.grad_checkpoint else kept),
        "attention scores": 0 if config.grad_checkpoint else L * scores,
        "logits": streams * (_BUFFERS_PER_PART_ON_GPU if device.on_gpu() else _BUFFERS_PER_PART) * 4 * rows * V,
    }
    tables = 2 * streams - 1 + several * _TABLES_OF_SUMS + device.on_gpu() * _TABLES_ON_GPU
    backward = {
        **states,
        "gradients": weights + tables * table,
        "activations": _BLOCKS_AT_WORK * kept,
        "attention scores": _SCORES_AT_WORK * scores,
    }
    update = {
        **states,
        "gradients": weights + table,  # and wte's squares
        "sent": 2 * max(part_size(weights), table) if processes > 1 else 0,
        "orthogonal": is_muon * _MUON_COPIES * min(part_size(weights), blocks),
    }
    return max((loss, backward, update), key=lambda usage: sum(usage.values()))


def _predict_adapter(config: TrainConfig, processes: int) -> Usage:
    """The same where an adapter learns: its base has no gradients and no moments, and the update is small.

    Nor does the start take more: the base is read, lowered and rounded tensor by tensor.
    """
    model, tokens = config.model_config(), config.batch_size * config.block_size
    L, C, T, V = model.n_layer, model.n_embd, model.block_size, model.vocab_size
    size = 4 if config.dtype == "float32" else 2
    per_weight = config.quantize / 8 + 2 * size / _QUANTIZED_GROUP if config.quantize else size
    base = 12 * L * C * C * per_weight + 13 * L * C * size + 4 * (V * C + T * C + 2 * C)
    adapter = 4 * config.lora_layers * config.lora_rank * C * sum(sum(TARGETS[name]) for name in config.lora_targets)
    streams = device.n_streams(config.batch_size)
    several = config.grad_accum_steps > processes
    kept, scores = _activations(config)
    states = {"weights": base + adapter, "moments": 2 * adapter, "gradients": adapter * (streams + several)}
    rows = min(device.logits_rows(V), tokens // streams)
    n = config.lora_layers  # no gradient goes further down
    loss = {
        **states,
        "activations": 4 * n * tokens * C if config.grad_checkpoint else n * kept,
        "attention scores": 0 if config.grad_checkpoint else n * scores,
        "logits": streams * (_BUFFERS_PER_PART_ON_GPU if device.on_gpu() else _BUFFERS_PER_PART) * 4 * rows * V,
    }
    backward = {**states, "activations": _BLOCKS_AT_WORK * kept, "attention scores": _SCORES_AT_WORK * scores}
    return max((loss, backward), key=lambda usage: sum(usage.values()))


def _activations(config: TrainConfig) -> tuple[float, float]:
    """The bytes that a block keeps for the backward pass of a micro-batch: of activations, and of attention scores."""
    tokens = config.batch_size * config.block_size
    size = 4 if config.dtype == "float32" else 4 * _KEPT_IN_16_BITS
    kept = size * _KEPT_PER_CHANNEL * tokens * config.n_embd
    if device.fuses_attention(config.n_embd // config.n_head) and not config.dropout:
        return kept, 0
    scores = size * tokens * config.n_head * config.block_size
    return kept, scores * (2.25 if config.dropout else 1)  # dropout keeps its result and its mask, too


def part_size(size: float) -> float:
    """The bytes of a part of a tree of `size` bytes, which a step evaluates part by part; a small model is one."""
    return max(64e6, size / 8)


def peak(config: TrainConfig, processes: int = 1) -> float:
    """The bytes that a step of resolved settings takes at its peak."""
    return sum(predict(config, processes).values())


def describe(usage: Usage) -> str:
    """A line such as "2.81 GB (weights 0.50, moments 1.00, gradients 1.31)"."""
    held = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in usage.items() if size)
    return f"{sum(usage.values()) / 1e9:.2f} GB ({held})"
