"""GPT-2 in float64 NumPy, written from the paper, with OpenAI's names, and what else is compared with NumPy.

It shares no code with what it checks.
"""

import numpy as np


def layer_norm(x, p, prefix):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * p[f"{prefix}.weight"] + p[f"{prefix}.bias"]


def product(x, weight):
    """x @ weight.T without BLAS: on a busy machine its threads wait for each other longer than a product takes."""
    return np.einsum("...i,oi->...o", x, weight)


def linear(x, p, prefix):
    return product(x, p[f"{prefix}.weight"]) + p[f"{prefix}.bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(x, p, prefix, n_head):
    T, C = x.shape
    q, k, v = np.split(linear(x, p, f"{prefix}.c_attn"), 3, axis=-1)
    out = np.empty_like(x)
    for h in range(n_head):
        own = slice(h * C // n_head, (h + 1) * C // n_head)  # the channels of this head
        for t in range(T):  # position t attends to positions 0 to t only
            weights = softmax(k[: t + 1, own] @ q[t, own] / np.sqrt(C // n_head))
            out[t, own] = weights @ v[: t + 1, own]
    return linear(out, p, f"{prefix}.c_proj")


def attend(q, k, v):
    """The newest tokens' queries (H, T, D) attend to all keys and values (H, L, D) up to their own: (H, T, D)."""
    T, L, D = q.shape[1], k.shape[1], q.shape[2]
    scores = np.einsum("htd,hld->htl", q, k) / np.sqrt(D)
    is_later = np.arange(L) > np.arange(L - T, L)[:, None]  # (T, L)
    return np.einsum("htl,hld->htd", softmax(np.where(is_later, -np.inf, scores)), v)


def orthogonal(gradient):
    """Muon's five steps of Newton and Schulz (Jordan et al. 2024): near the closest orthogonal matrix, in its shape."""
    is_tall = gradient.shape[0] > gradient.shape[1]
    x = gradient.T if is_tall else gradient
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        a = product(x, x)
        x = 3.4445 * x + product(-4.7750 * a + 2.0315 * product(a, a), x.T)
    return x.T if is_tall else x


def logits(p, tokens, n_layer, n_head):
    """p: name -> float64 array, linear weights (out, in); tokens: (B, T) ints. Returns (B, T, V)."""
    rows = []
    for row in tokens:
        x = p["wte.weight"][row] + p["wpe.weight"][: len(row)]
        for i in range(n_layer):
            x = x + attention(layer_norm(x, p, f"h.{i}.ln_1"), p, f"h.{i}.attn", n_head)
            hidden = gelu(linear(layer_norm(x, p, f"h.{i}.ln_2"), p, f"h.{i}.mlp.c_fc"))
            x = x + linear(hidden, p, f"h.{i}.mlp.c_proj")
        rows.append(product(layer_norm(x, p, "ln_f"), p["wte.weight"]))
    return np.stack(rows)


def loss(p, tokens, targets, n_layer, n_head):
    """The summed cross entropy over targets that are not negative."""
    z = logits(p, tokens, n_layer, n_head)
    log_p = z - z.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return -(picked * (targets >= 0)).sum()


def shares(logits, temperature, top_k, top_p, min_p):
    """Where a draw in [0, 1) must lie to give a token: from low (V,) to high (V,), which cross where it is removed.

    The tokens share [0, 1) in the order of their ids, or with top_k or top_p the likeliest first.
    """
    order = np.argsort(-logits, kind="stable") if top_k or top_p < 1 else np.arange(len(logits))
    p = np.exp((logits[order] - logits.max()) / temperature)
    p[top_k or len(p) :] = 0
    kept = np.where((np.cumsum(p) - p < top_p * p.sum()) & (p >= min_p) & (p > 0), p, 0)
    high = np.cumsum(kept) / kept.sum()
    low = np.where(kept > 0, high - kept / kept.sum(), np.inf)
    back = np.argsort(order)
    return low[back], np.where(kept > 0, high, -np.inf)[back]
