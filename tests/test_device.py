import os
import sys

import mlx.core as mx
import pytest

from gpt2_mlx import device


@pytest.mark.cpu("each process has its own GPU where a GPU has memory of its own")
def test_memory_is_less_than_the_machines_and_shared_evenly():
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < device.memory() < device.total_memory() <= machine
    assert device.memory(sharing=3) == device.memory() // 3


@pytest.mark.cpu("a GPU takes a batch whole")
@pytest.mark.parametrize(("cores", "batch_size", "n"), [(1, 8, 1), (2, 8, 2), (2, 3, 1), (4, 6, 3), (8, 4, 4)])
def test_a_batch_is_split_evenly_over_as_many_cores_as_divide_it(monkeypatch, cores, batch_size, n):
    monkeypatch.setattr(device, "cpu_count", lambda: cores)
    assert device.n_streams(batch_size) == n


def test_the_wired_limit_is_left_alone_unless_asked_for():
    device.wire(0)
    with pytest.raises(ValueError, match=r"--wired-limit-gb is 2\.5; only a Mac's GPU has such a limit"):
        device.wire(2.5)


@pytest.mark.cpu("a GPU's work needs no limit")
def test_work_keeps_to_its_memory_where_it_can():
    old = mx.set_memory_limit(1 << 40)
    x = mx.ones((1000, 1000))
    mx.eval(x)
    try:
        device.work_within(20e6)
        before = mx.get_active_memory()
        for _ in range(300):
            x = mx.concatenate([x[1:], x[:1]])  # 4 MB each, and only two are needed at a time
        mx.reset_peak_memory()
        mx.eval(x)
        assert mx.get_peak_memory() - before < 40e6
    finally:
        mx.set_memory_limit(old)


@pytest.fixture
def a_mac(monkeypatch) -> dict[str, int]:
    """A Mac whose GPU recommends 12 GB; returns the limits that MLX is given."""
    limits = {}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(mx, "is_available", lambda device: True)
    monkeypatch.setattr(mx, "set_default_device", lambda device: None)
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": int(12e9)})
    for name in ("memory", "cache", "wired"):
        monkeypatch.setattr(mx, f"set_{name}_limit", lambda size, name=name: limits.update({name: size}))
    return limits


def test_a_macs_limits(a_mac):
    assert device.select() == "gpu"
    assert a_mac == {"memory": 12e9}  # a training keeps what it gave back, or it would fault it in at each step
    device.work_within(1e9, sharing=2)
    assert a_mac == {"memory": 6e9}
    device.limit_cache()
    assert a_mac == {"memory": 6e9, "cache": 3e9}
    device.wire(8)
    assert a_mac["wired"] == 8e9
    with pytest.raises(ValueError, match=r"--wired-limit-gb is 13; this Mac allows at most 12\.0"):
        device.wire(13)


def test_generation_takes_float16_on_a_gpu_unless_told(monkeypatch):
    monkeypatch.setattr(device, "on_gpu", lambda: False)
    assert [device.dtype(name) for name in ("auto", "bfloat16")] == ["float32", "bfloat16"]
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    assert [device.dtype(name) for name in ("auto", "bfloat16")] == ["float16", "bfloat16"]
