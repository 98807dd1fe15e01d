import os

import mlx.core as mx
import pytest

from gpt2_mlx import device


def test_memory_is_less_than_the_machines_and_shared_evenly():
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < device.memory() < device.total_memory() <= machine
    assert device.memory(sharing=3) == device.memory() // 3


@pytest.mark.parametrize(("cores", "batch_size", "n"), [(1, 8, 1), (2, 8, 2), (2, 3, 1), (4, 6, 3), (8, 4, 4)])
def test_a_batch_is_split_evenly_over_as_many_cores_as_divide_it(monkeypatch, cores, batch_size, n):
    monkeypatch.setattr(device, "cpu_count", lambda: cores)
    assert device.n_streams(batch_size) == n


def test_the_wired_limit_is_left_alone_unless_asked_for():
    device.wire(0)
    with pytest.raises(ValueError, match=r"--wired-limit-gb is 2\.5; only a Mac's GPU has such a limit"):
        device.wire(2.5)


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
