"""What memory a step takes, by calculation.

Shapes: B windows per micro-batch, T block_size, C n_embd, H n_head, L n_layer, V vocab_size; 4 bytes a number.
"""

from .. import device
from .config import TrainConfig

Parts = dict[str, float]  # what holds memory, in bytes

# Fitted to peaks measured on the CPU, over models of 4 to 12 layers, 128 to 768 wide, windows of 128 to 1,024 tokens.
_KEPT_PER_CHANNEL = 31  # numbers a block keeps for the backward pass, per token and channel
_BUFFERS_PER_CHUNK = 2.5  # of the loss: logits, their exponentials, half of another chunk's
_KEPT_IN_16_BITS = 0.7  # softmax, norms and GELU keep some in float32
_BLOCKS_AT_WORK = 3  # in the backward pass: what they kept, its gradients, what is made for the next
_SCORES_AT_WORK = 5
_MUON_COPIES = 3  # of the blocks' matrices, which are made orthogonal all at once


def predict(config: TrainConfig, processes: int = 1) -> Parts:
    """What holds memory at the moment of a step's peak, for resolved settings: the sum is the peak.

    The peak is in the loss, where all activations are kept, at the end of the backward pass, where all gradients are
    made, or in the update, where weights and moments are there twice.
    """
    model = config.model_config()
    L, C, T, V = model.n_layer, model.n_embd, model.block_size, model.vocab_size
    blocks, table = 4 * 12 * L * C * C, 4 * V * C  # of the blocks' matrices; of wte
    weights = blocks + table + 4 * (T * C + 13 * L * C + 2 * C)
    streams = device.n_streams(config.batch_size)
    lowered = 0 if config.dtype == "float32" else streams * blocks / 2
    is_muon = config.optimizer == "muon"
    several = config.grad_accum_steps > processes  # micro-batches in each process: their sum is kept, too
    moments = 2 * weights - is_muon * blocks
    states = {"weights": weights + lowered, "moments": moments}
    kept, scores = _activations(config)
    rows = min(device.logits_rows(V), config.batch_size // streams * T)
    loss = {
        **states,
        "gradients": weights * several + streams * table,
        "activations": L * (4 * config.batch_size * T * C if config.grad_checkpoint else kept),
        "attention scores": 0 if config.grad_checkpoint else L * scores,
        "logits": streams * _BUFFERS_PER_CHUNK * 4 * rows * V,
    }
    backward = {
        **states,
        "gradients": weights * several + streams * (weights + table) + (table if streams > 1 else 0),
        "activations": _BLOCKS_AT_WORK * kept,
        "attention scores": _SCORES_AT_WORK * scores,
    }
    update = {
        **states,
        "gradients": weights * (2 if processes > 1 else 1),
        "updated": weights + moments + is_muon * _MUON_COPIES * blocks,
    }
    return max((loss, backward, update), key=lambda parts: sum(parts.values()))


def _activations(config: TrainConfig) -> tuple[float, float]:
    """The bytes that a block keeps of a micro-batch for the backward pass, and of its attention scores."""
    tokens = config.batch_size * config.block_size
    size = 4 if config.dtype == "float32" else 4 * _KEPT_IN_16_BITS
    kept = size * _KEPT_PER_CHANNEL * tokens * config.n_embd
    scores = size * tokens * config.n_head * config.block_size
    return kept, scores * (2.25 if config.dropout else 1)  # with the dropped ones and their mask


def peak(config: TrainConfig, processes: int = 1) -> float:
    """The bytes a step of resolved settings takes at its peak."""
    return sum(predict(config, processes).values())


def describe(parts: Parts) -> str:
    """Such as: 2.81 GB (weights 0.50, moments 1.00, gradients 1.31)."""
    held = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items() if size)
    return f"{sum(parts.values()) / 1e9:.2f} GB ({held})"
