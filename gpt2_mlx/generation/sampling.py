"""From logits to text: the samples that training shows."""

import mlx.core as mx
import tiktoken

from ..model import GPT2


def sample(logits: mx.array, temperature: float, top_k: int, key: mx.array) -> mx.array:
    """Draw one token from logits (V,): the scalar id.

    Args:
        temperature: what the logits are divided by; 0 takes the most likely token.
        top_k: how many of the most likely tokens to draw from; 0 is all.
        key: what the draw follows from.
    """
    if temperature == 0:
        return mx.argmax(logits)
    k = min(top_k, len(logits)) or len(logits)
    candidates = mx.argpartition(-logits, k - 1)[:k]
    cumulated = mx.cumsum(mx.softmax(logits[candidates].astype(mx.float32) / temperature))
    drawn = mx.random.uniform(key=key) * cumulated[-1]
    return candidates[mx.minimum(mx.sum(cumulated <= drawn), len(candidates) - 1)]


def generate(
    model: GPT2,
    encoding: tiktoken.Encoding,
    prompt: str,
    max_tokens: int,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> str:
    """The prompt and up to `max_tokens` more tokens, fewer where the model ends the text.

    Each token is drawn from the model's view of the newest `block_size` tokens, with a key that follows from the seed
    and the token's number.
    """
    ids = encoding.encode_ordinary(prompt) or [encoding.eot_token]
    prompt_length = len(ids)
    for i in range(max_tokens):
        window = mx.array([ids[-model.config.block_size :]])  # (1, T)
        logits = model.wte.as_linear(model.hidden(window)[0, -1])  # (V,)
        token = sample(logits, temperature, top_k, mx.random.key(seed << 32 | i)).item()
        if token == encoding.eot_token:
            break
        ids.append(token)
    return prompt + encoding.decode(ids[prompt_length:])
