"""Cross entropy over the whole vocabulary that never holds all of the logits.

Shapes: N tokens, C n_embd, V vocab_size.
"""

import mlx.core as mx

from .. import device

IGNORE = -1  # a target that does not count


def cross_entropy(hidden: mx.array, wte: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """The summed cross entropy of softmax(hidden @ wte.T) against the targets, in nats.

    Works through the tokens in chunks, so that only a chunk's logits exist at a time, and makes the gradient while
    they are there: each exponential is computed once, for value and gradient together.

    Args:
        hidden: (..., C) what the head is applied to.
        wte: (V, C) the head.
        targets: (...) integers in [0, V), or `IGNORE`.

    Returns:
        The sum over all tokens that count, and their number, both float32 scalars.
    """
    targets = targets.reshape(-1)
    loss, _, _ = _loss_and_gradients(hidden.reshape(-1, hidden.shape[-1]), wte, targets)
    return loss, mx.sum(targets != IGNORE).astype(mx.float32)


def cross_entropy_value(hidden: mx.array, wte: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """As `cross_entropy`, without making a gradient: for evaluation."""
    targets = targets.reshape(-1)
    loss, _, _ = _chunked(hidden.reshape(-1, hidden.shape[-1]), wte, targets)
    return loss, mx.sum(targets != IGNORE).astype(mx.float32)


def _chunked(hidden: mx.array, wte: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """loss (), its gradient for hidden (N, C) and for wte (V, C); what is not used is never computed.

    With p = softmax(logits), d loss / d logits = p - one_hot(target). The one_hot's share of the gradients needs no
    logits; p's is made with its divisor applied to the small matrices.
    """
    rows = device.logits_rows(len(wte))
    counts = (targets != IGNORE)[:, None].astype(mx.float32)  # (N, 1)
    targets = mx.maximum(targets, 0)
    at_target = wte[targets]  # (N, C)
    log_total, d_hidden, d_wte = [], [], mx.zeros(wte.shape)
    for start in range(0, len(targets), rows):
        h = hidden[start : start + rows]  # (n, C)
        logits = (h @ wte.T).astype(mx.float32)  # (n, V)
        peak = mx.max(logits, axis=-1, keepdims=True)
        e = device.exp_of_negative(logits - peak)
        total = mx.sum(e, axis=-1, keepdims=True)  # (n, 1)
        scale = counts[start : start + rows] / total
        log_total.append(mx.log(total) + peak)
        d_hidden.append((e @ wte) * scale)
        d_wte = mx.addmm(d_wte, e.T, h * scale)
    target_logit = mx.sum(hidden * at_target, axis=-1, keepdims=True)
    loss = mx.sum(counts * (mx.concatenate(log_total) - target_logit))
    d_hidden = mx.concatenate(d_hidden) - counts * at_target
    return loss, d_hidden, d_wte.at[targets].add(-counts * hidden)


_loss_and_gradients = mx.custom_function(_chunked)


@_loss_and_gradients.vjp
def _loss_vjp(primals, cotangents, outputs):
    _, d_hidden, d_wte = outputs
    return cotangents[0] * d_hidden, cotangents[0] * d_wte, mx.zeros_like(primals[2])
