import os

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # float32 means float32 where results are compared

import contextlib
import signal
from pathlib import Path

import hypothesis
import pytest
from client import Client
from fake_engine import FakeEngine
from replayed import answering, replayed, serve  # noqa: F401

import gpt2_mlx  # noqa: F401  (before mlx: it brings the BLAS)
from gpt2_mlx import blas, device
from gpt2_mlx.config import GPT2Config

# A shell starts what runs in its background with Ctrl-C ignored, and the programs that tests stop would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "no_clock", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("no_clock")


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        choices=("cpu", "as-gpu", "gpu"),
        default="cpu",
        help="where to compute; as-gpu computes on the CPU, but the program takes the ways that it takes on a GPU",
    )


@pytest.fixture(autouse=True, scope="session")
def chosen_device(request):
    """The device of all tests. What they start as another process takes that process's default."""
    chosen = request.config.getoption("--device")
    device.select("gpu" if chosen == "gpu" else "cpu")
    if chosen == "as-gpu":
        device.on_gpu = lambda: True


@pytest.fixture(autouse=True)
def own_kernel():
    """A training leaves products to OpenBLAS from its start on; the next test has our kernel again."""
    rows = blas._cblas and blas._most_rows().value
    yield
    if rows:
        blas._most_rows().value = rows


def pytest_collection_modifyitems(config, items):
    """Skip what only holds on a CPU, such as equal bits in any company, where the program computes as on a GPU."""
    if config.getoption("--device") != "cpu":
        for item in items:
            if mark := item.get_closest_marker("cpu"):
                item.add_marker(pytest.mark.skip(reason=f"on a CPU only: {mark.args[0]}"))


@pytest.fixture
def small() -> GPT2Config:
    """A GPT-2 for quick tests: every dimension is another number."""
    return GPT2Config(block_size=10, vocab_size=61, n_layer=3, n_head=2, n_embd=12)


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A file to train on."""
    path = tmp_path_factory.mktemp("data") / "verse.txt"
    path.write_text("".join(f"Line {i}:\nShall I compare thee to a summer's day {i * i}?\n\n" for i in range(80)))
    return path


@pytest.fixture
def open_client():
    with contextlib.ExitStack() as stack:

        def open_client(fake: FakeEngine | None = None, **arguments) -> Client:
            client = Client(fake or FakeEngine(), **arguments)
            stack.callback(client.close)
            return client

        yield open_client


@pytest.fixture
def client(open_client) -> Client:
    return open_client()
