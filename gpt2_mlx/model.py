"""GPT-2 (Radford et al. 2019) as an `mlx.nn` module: tokens (B, T) -> logits (B, T, V).

Shapes: B batch, T tokens, C n_embd, H n_head, D head_dim, V vocab_size.
"""

import math
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from . import device
from .config import GPT2Config
from .elementwise import gelu, softmax

LAYER_NORM_EPSILON = 1e-5
_LINEAR = ("c_attn", "c_proj", "c_fc")
_NO_GRADIENT = 8  # up to this many queries Metal takes a fused kernel that has no gradient, and throws


def dropout(x: mx.array, p: float, key: mx.array | None) -> mx.array:
    """Zero each element with probability `p` and scale the rest by 1 / (1 - p); without a key, `x` as it is.

    The mask is a function of the key alone, so that a recomputed forward pass drops the same elements.
    """
    if key is None or p == 0:
        return x
    words = mx.random.split(key, -(-x.size // 4))  # (n, 2) uint32; 16 bits an element take half of bernoulli's time
    kept = words.view(mx.uint16).reshape(-1)[: x.size].reshape(x.shape) >= mx.array(round(p * 2**16), mx.uint16)
    return mx.where(kept, x * (1 / (1 - p)), 0)


class CausalSelfAttention(nn.Module):
    """Each position attends to itself and to the positions before it."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def __call__(self, x: mx.array, key: mx.array | None = None, cache=None, mask: mx.array | None = None) -> mx.array:
        B, T, C = x.shape
        qkv = self.c_attn(x).reshape(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each (B, H, T, D)
        scale = 1 / math.sqrt(C // self.n_head)
        if cache is not None:
            y = cache.attend(q, k, v, scale)
        elif T > _NO_GRADIENT and (key is None or self.dropout == 0) and not device.is_scalar():
            mask = "causal" if mask is None else mask
            y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        else:  # the fused kernels cannot drop probabilities, and Linux's CPU has none
            scores = (q * scale) @ k.swapaxes(-1, -2)  # (B, H, T, T)
            scores = mx.where(mx.tri(T, dtype=mx.bool_) if mask is None else mask, scores, -mx.inf)
            y = dropout(softmax(scores), self.dropout, key) @ v
        y = y.swapaxes(1, 2).reshape(B, T, C)  # (B, H, T, D) -> (B, T, C)
        return self.c_proj(y)


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def __call__(self, x: mx.array) -> mx.array:
        return self.c_proj(gelu(self.c_fc(x)))  # (B, T, C) -> (B, T, 4C) -> (B, T, C)


class LayerNorm(nn.LayerNorm):
    """A LayerNorm whose result has its weight's dtype, whatever the input's is."""

    def __init__(self, config: GPT2Config):
        super().__init__(config.n_embd, eps=LAYER_NORM_EPSILON)

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x).astype(self.weight.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x keeps its dtype, which may be finer than the block's."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.dropout = config.dropout
        self.ln_1 = LayerNorm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array, key: mx.array | None = None, cache=None, mask: mx.array | None = None) -> mx.array:
        keys = (None, None, None) if key is None else mx.random.split(key, 3)
        x = x + dropout(self.attn(self.ln_1(x), keys[0], cache, mask), self.dropout, keys[1])
        return x + dropout(self.mlp(self.ln_2(x)), self.dropout, keys[2])


class GPT2(nn.Module):
    """GPT-2 with its head tied to the token embedding. The initial weights follow from `seed`.

    The parameters carry GPT-2's own names: `wte wpe h ln_1 attn.c_attn attn.c_proj ln_2 mlp.c_fc mlp.c_proj ln_f`.
    """

    def __init__(self, config: GPT2Config, seed: int = 0):
        super().__init__()
        self.config = config
        self.lora = None  # what `lora.add` has added
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = [Block(config) for _ in range(config.n_layer)]
        self.ln_f = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPSILON)
        self.initialise(seed)

    def initialise(self, seed: int) -> None:
        """Draw new parameters, in float32 (Radford et al. 2018, section 4.1; 2019, section 2.3).

        | parameter                  | distribution                    |
        |----------------------------|---------------------------------|
        | wte, wpe, c_attn, c_fc     | normal, std 0.02                |
        | c_proj (ends a residual)   | normal, std 0.02 / sqrt(2 n_layer) |
        | biases                     | 0                               |
        | LayerNorm weights          | 1                               |
        """
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)

        def draw(name: str, old: mx.array) -> mx.array:
            nonlocal key
            if old.ndim < 2:
                return mx.zeros(old.shape) if name.endswith("bias") else mx.ones(old.shape)
            key, own = mx.random.split(key)
            return mx.random.normal(old.shape, scale=residual_std if "c_proj" in name else 0.02, key=own)

        key = mx.random.key(seed)
        self.update(tree_map_with_path(draw, self.parameters()))

    @property
    def n_params(self) -> int:
        """The number of parameters; the tied head counts once."""
        return sum(p.size for _, p in tree_flatten(self.parameters()))

    @property
    def n_trained(self) -> int:
        """The number of parameters that learn: all, or those of an adapter."""
        return sum(p.size for _, p in tree_flatten(self.trainable_parameters()))

    @property
    def dtype(self) -> mx.Dtype:
        """The type that the blocks compute in."""
        return self.ln_f.weight.dtype

    @property
    def quantization(self) -> dict | None:
        """How its matrices are quantised, as the arguments of `nn.quantize`; None where they are not."""
        layer = self.h[0].attn.c_attn
        layer = getattr(layer, "linear", layer)  # what an adapter is beside
        is_quantized = isinstance(layer, nn.QuantizedLinear)
        return {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode} if is_quantized else None

    def quantize(self, bits: int, head: bool = True) -> None:
        """Round the matrices and the tied head to `bits` per weight; positions, LayerNorms and biases stay as they are.

        Without `head` the token embedding, to which it is tied, stays as it is, too.

        Every 64 weights of a row (32 where 64 does not divide n_embd) share a scale and an offset, which add half a bit
        per weight in float16. Raises a ValueError where the model is quantised already or 32 does not divide n_embd.
        """
        if self.quantization:
            raise ValueError(f"the model is quantised already, to {self.quantization['bits']} bits")
        group_size = next((size for size in (64, 32) if self.config.n_embd % size == 0), None)
        if group_size is None:
            raise ValueError(f"n_embd is {self.config.n_embd}; to be quantised it must be a multiple of 32")
        names = ("wte", *_LINEAR) if head else _LINEAR
        nn.quantize(self, group_size, bits, class_predicate=lambda name, _: name.endswith(names))

    def __call__(self, tokens: mx.array, key: mx.array | None = None) -> mx.array:
        """The logits of the token that follows each position.

        Args:
            tokens: (B, T) integers in [0, vocab_size); T is at most block_size.
            key: where it is given, dropout is on, and its masks follow from this key.

        Returns:
            (B, T, vocab_size) in the model's dtype.

        Raises:
            ValueError: a token or the length is out of range. Inside `mx.compile`, where tokens have no values yet,
                only the length is checked.
        """
        self._check_tokens(tokens)
        return self.wte.as_linear(self.hidden(tokens, key))

    def hidden(
        self,
        tokens: mx.array,
        key: mx.array | None = None,
        cache=None,
        recompute: bool = False,
        starts: mx.array | None = None,
    ) -> mx.array:
        """What `__call__` applies the head to: (B, T) -> (B, T, C) after the last LayerNorm. Token ids are not checked.

        With a cache (a view that `KVCache.extend` returns) the tokens follow those that it holds and are added to them.
        With `recompute` the backward pass computes each block's activations again, with the same masks, instead of
        keeping them (Chen et al. 2016). With `starts`, (B, T) integers, a row holds several texts, each of which has
        what it has alone: they tell where in its row the text of each position begins. The sum that runs through the
        blocks, and so the result, has the embeddings' dtype.
        """
        T = tokens.shape[1]
        if cache is None and T > self.config.block_size:  # a cache checks its lengths itself: it knows what is padding
            raise ValueError(f"{T} tokens do not fit: this model's block_size is {self.config.block_size}")
        n_layer = self.config.n_layer
        keys = [None] * (n_layer + 1) if key is None else mx.random.split(key, n_layer + 1)
        positions = mx.arange(T) if cache is None else cache.positions  # (T,) or (B, T)
        layers = [None] * n_layer if cache is None else cache.layers
        mask = None
        if starts is not None:
            positions = positions - starts  # (B, T)
            mask = (starts[:, :, None] == starts[:, None, :]) & mx.tri(T, dtype=mx.bool_)  # (B, T, T)
            mask = mask[:, None]  # (B, 1, T, T), for all heads
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        x = dropout(x, self.config.dropout, keys[-1])
        for block, block_key, layer in zip(self.h, keys, layers):
            forward = partial(block, key=block_key, cache=layer, mask=mask)
            x = nn.utils.checkpoint(block, forward)(x) if recompute else forward(x)
        return self.ln_f(x)

    def _check_tokens(self, tokens: mx.array) -> None:
        if tokens.ndim != 2 or tokens.size == 0 or not mx.issubdtype(tokens.dtype, mx.integer):
            raise ValueError(f"tokens are {tokens.dtype} of shape {tokens.shape}; they must be integers, (B, T)")
        try:
            low, high = mx.min(tokens).item(), mx.max(tokens).item()
        except ValueError:  # inside mx.compile there are no values yet
            return
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"tokens lie in [{low}, {high}]; they must lie in [0, {self.config.vocab_size - 1}]")
