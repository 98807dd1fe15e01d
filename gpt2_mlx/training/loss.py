"""Cross entropy over the whole vocabulary, without holding the logits of all tokens at once.

Shapes: N tokens, C n_embd, V vocab_size.
"""

import mlx.core as mx

from .. import device, elementwise
from ..corpus.loader import IGNORE


def cross_entropy(
    hidden: mx.array, wte: mx.array, targets: mx.array, learns_wte: bool = True
) -> tuple[mx.array, mx.array]:
    """The summed cross entropy of softmax(hidden @ wte.T) against the targets, in nats.

    It takes one part of the tokens after the other, so that only the logits of a part exist at a time. While they
    exist, it computes the gradient too, so that each exponential is computed once.

    Args:
        hidden: (..., C) the input of the head.
        wte: (V, C) the head.
        targets: (...) integers in [0, V), or `IGNORE`.
        learns_wte: whether there is a gradient for the head; without it the loss takes less time and memory.

    Returns:
        The sum over all targets that count, and their number, both float32 scalars.
    """
    targets = targets.reshape(-1)
    with_gradients = _loss_and_gradients if learns_wte else _loss_and_gradient
    loss, *_ = with_gradients(hidden.reshape(-1, hidden.shape[-1]), wte, targets)
    return loss, mx.sum(targets != IGNORE).astype(mx.float32)


def cross_entropy_by_token(hidden: mx.array, wte: mx.array, targets: mx.array) -> mx.array:
    """The terms of `cross_entropy` without a gradient, for evaluation: (...) float32, 0 where a target is `IGNORE`."""
    hidden, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    log_totals = []
    for part in _parts(len(hidden), wte):
        h = mx.depends(hidden[part], log_totals[-1:])  # (n, C), one part after the other
        _, _, log_total = _softmax_terms(h, wte)
        log_totals.append(log_total)
    return _losses(hidden, wte[mx.maximum(flat, 0)], mx.concatenate(log_totals), flat).reshape(targets.shape)


@mx.custom_function
def _loss_and_gradients(hidden: mx.array, wte: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The loss (), its gradient for hidden (N, C) and for wte (V, C)."""
    loss, d_hidden, d_wte = _terms(hidden, wte, targets, mx.zeros(wte.shape))
    return loss, d_hidden, d_wte.at[mx.maximum(targets, 0)].add(-_counted(targets) * hidden)


@mx.custom_function
def _loss_and_gradient(hidden: mx.array, wte: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """The same where wte does not learn."""
    loss, d_hidden, _ = _terms(hidden, wte, targets, None)
    return loss, d_hidden


def _terms(
    hidden: mx.array, wte: mx.array, targets: mx.array, d_wte: mx.array | None
) -> tuple[mx.array, mx.array, mx.array | None]:
    """The loss, its gradient for hidden, and `d_wte` with the gradient's term with p added to it, where it is given.

    With p = softmax(logits), d loss / d logits = p - one_hot(target). The gradients' term with one_hot needs no logits.
    In the term with p, the softmax's divisor is applied to the small matrices (n, C) instead of (n, V).
    """
    counted = _counted(targets)  # (N, 1)
    log_totals, d_hidden = [], []
    for part in _parts(len(hidden), wte):
        former = d_hidden[-1:] if d_wte is None else [d_wte, *d_hidden[-1:]]
        h = mx.depends(hidden[part], former)  # (n, C), one part after the other
        e, total, log_total = _softmax_terms(h, wte)
        scale = counted[part] / total  # (n, 1)
        log_totals.append(log_total)
        d_hidden.append((e @ wte) * scale)
        d_wte = None if d_wte is None else mx.addmm(d_wte, e.T, h * scale)
    at_target = wte[mx.maximum(targets, 0)]  # (N, C)
    loss = mx.sum(_losses(hidden, at_target, mx.concatenate(log_totals), targets))
    return loss, mx.concatenate(d_hidden) - counted * at_target, d_wte


@_loss_and_gradients.vjp
def _vjp(primals, cotangents, outputs):
    hidden, wte, targets = primals
    _, d_hidden, d_wte = outputs
    loss = cotangents[0]
    return (loss * d_hidden).astype(hidden.dtype), (loss * d_wte).astype(wte.dtype), mx.zeros_like(targets)


@_loss_and_gradient.vjp
def _vjp_of_hidden(primals, cotangents, outputs):
    hidden, wte, targets = primals
    return (cotangents[0] * outputs[1]).astype(hidden.dtype), mx.zeros_like(wte), mx.zeros_like(targets)


def _parts(n: int, wte: mx.array) -> list[slice]:
    rows = device.logits_rows(len(wte))
    return [slice(start, start + rows) for start in range(0, n, rows)]


def _softmax_terms(h: mx.array, wte: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """h (n, C) -> exp(logits - peak) (n, V), its sum (n, 1), and the log of the sum of exp(logits) (n, 1)."""
    logits = (h @ wte.T).astype(mx.float32)
    peak = mx.max(logits, axis=-1, keepdims=True)
    e = elementwise.exp_of_negative(logits - peak)
    total = mx.sum(e, axis=-1, keepdims=True)
    return e, total, mx.log(total) + peak


def _losses(hidden: mx.array, at_target: mx.array, log_total: mx.array, targets: mx.array) -> mx.array:
    target_logit = mx.sum(hidden.astype(mx.float32) * at_target, axis=-1, keepdims=True)  # (N, 1)
    return _counted(targets) * (log_total - target_logit)  # (N, 1)


def _counted(targets: mx.array) -> mx.array:
    return (targets != IGNORE)[:, None].astype(mx.float32)  # (N, 1)
