import mlx.core as mx
import numpy as np
import pytest

from gpt2_mlx import device
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.kv_cache import BUCKET, KVCache
from gpt2_mlx.model import GPT2

CONFIG = GPT2Config(block_size=200, vocab_size=61, n_layer=2, n_head=2, n_embd=12)


def read(model: GPT2, cache: KVCache, slot: int, tokens: list[int], start: int) -> np.ndarray:
    view = cache.extend([slot], [start], [len(tokens)], len(tokens))
    return np.array(model.hidden(mx.array([tokens]), cache=view)[0])


def test_there_is_room_for_what_was_needed_and_no_more():
    cache = KVCache(CONFIG, n_slots=6)
    assert cache.keys[0].shape == (1, 2, BUCKET, 6)
    cache.extend([0], [0], [BUCKET - 1], BUCKET - 1)
    assert cache.keys[0].shape == (1, 2, BUCKET, 6)
    cache.extend([2], [0], [1], 1)
    assert cache.keys[0].shape == (4, 2, BUCKET, 6)
    cache.extend([0], [BUCKET - 1], [1], 1)  # a place is kept for padding
    assert cache.keys[0].shape == (4, 2, 2 * BUCKET, 6)
    cache.extend([5], [0], [200], 200)
    assert cache.keys[0].shape == cache.values[1].shape == (6, 2, 256, 6)  # no more than slots, whole buckets
    with pytest.raises(ValueError, match="201 tokens do not fit: this model's block_size is 200"):
        cache.extend([5], [200], [1], 1)


def test_growing_loses_nothing():
    model, cache = GPT2(CONFIG), KVCache(CONFIG, n_slots=3)
    tokens = np.random.RandomState(0).randint(0, 61, 200).tolist()
    expected = np.array(model.hidden(mx.array([tokens]))[0])  # (T, C)
    for start, end in ((0, 50), (50, 63), (63, 64), (64, 150)):
        assert np.abs(read(model, cache, 0, tokens[start:end], start) - expected[start:end]).max() < 1e-4
    read(model, cache, 2, tokens[:7], 0)  # more slots
    cache.copy(0, 1, 100)
    assert np.abs(read(model, cache, 1, tokens[100:], 100) - expected[100:]).max() < 1e-4  # more tokens
    assert np.abs(read(model, cache, 0, tokens[150:], 150) - expected[150:]).max() < 1e-4
    assert np.abs(read(model, cache, 2, tokens[7:9], 7) - expected[7:9]).max() < 1e-4


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_chunk_is_stored_as_a_slice_with_the_bits_of_a_scatter(dtype):
    model, tokens = GPT2(CONFIG), mx.arange(16)[None]
    model.set_dtype(dtype)
    stored = []
    for slots in ([1], [1, 0]):  # with a second slot it is a scatter
        cache, n = KVCache(CONFIG, 2, dtype), len(slots)
        view = cache.extend(slots, [0] * n, [11] * n, 16)
        model.hidden(mx.repeat(tokens, n, axis=0), cache=view)
        stored.append([np.array(a[1, :, :11].astype(mx.float32)) for a in cache.state()])
        assert (view.chunk is None) == (n == 2)
        assert (np.array(cache.keys[0][1, :, 11:60].astype(mx.float32)) == 0).all()  # no padding is stored here
    assert all((a == b).all() for a, b in zip(*stored))


def test_metal_gets_a_mask_that_it_need_not_copy(monkeypatch):
    cache = KVCache(CONFIG, n_slots=3)
    arguments = ([0, 1, 2], [5, 70, 0], [1, 1, 1], 1)
    plain = np.array(cache.extend(*arguments).mask)
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    mask = cache.extend(*arguments).mask
    assert mask.shape == (3, 2, 1, 128) and memoryview(mask).c_contiguous
    assert (np.array(mask) == plain).all()
