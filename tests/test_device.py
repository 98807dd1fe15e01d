import os

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
