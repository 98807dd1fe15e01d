"""GPT-2 in float64 NumPy, written from the paper, with OpenAI's names. It shares no code with the model."""

import numpy as np


def layer_norm(x, p, prefix):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * p[f"{prefix}.weight"] + p[f"{prefix}.bias"]


def product(x, weight):
    """x @ weight.T without BLAS, whose threads wait for each other on a busy machine, longer than these products take."""
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
