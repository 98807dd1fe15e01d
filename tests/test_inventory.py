import mlx.core as mx
import pytest

from gpt2_mlx import device, inventory


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_machine_is_told_by_its_name_and_by_what_computes(monkeypatch, on_gpu):
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "Apple M3 Max", "architecture": "applegpu_g15s"})
    monkeypatch.setattr(device, "on_gpu", lambda: on_gpu)
    monkeypatch.setattr(device, "total_memory", lambda: 36e9)
    facts = inventory.facts()
    assert (facts["device"], facts["memory_gb"]) == (f"Apple M3 Max, {'GPU' if on_gpu else 'CPU'}", 36.0)
    assert (inventory.description() == "Apple M3 Max, GPU") == on_gpu
    assert inventory.chip() == ("Apple M3 Max" if on_gpu else None)
    assert (facts["blas"] == "not used by a GPU") == on_gpu
    assert (inventory.limits()["working_set_gb"] == "not told") == on_gpu
