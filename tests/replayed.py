"""A service of a real engine, and `gpt2-mlx replay` of what it answered."""

import json
import sys
import threading
from pathlib import Path

import pytest
from models import far_from_uniform

from gpt2_mlx import checkpoint, cli
from gpt2_mlx.commands import replay
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.pretrained import LoadConfig
from gpt2_mlx.serving.engines import Engines, loading
from gpt2_mlx.tokenizer import load as load_encoding

BLOCK = 192


@pytest.fixture(scope="module")
def answering(tmp_path_factory) -> Path:
    """The checkpoint that answers."""
    folder = tmp_path_factory.mktemp("model") / "step-00000001"
    checkpoint.save(folder, far_from_uniform(GPT2Config(block_size=BLOCK, n_layer=1, n_head=1, n_embd=8)))
    return folder


class RealEngine:
    """Real engines for `ThreadProcess`."""

    def __init__(self, folder: Path):
        self.checkpoint, self.gate, self.killed = folder, threading.Event(), threading.Event()

    def begin(self, on_pass):
        def make(model, _):
            return Engine(model, 8, on_pass, 16, load_encoding())

        return Engines(lambda folder: loading(folder, "float32", None, make), self.checkpoint)


class Run:
    name, block_size = "verse", BLOCK

    def __init__(self, folder: Path):
        self.folder = folder

    def checkpoints(self):
        return {self.folder.name: self.folder}


@pytest.fixture
def serve(open_client, answering):
    def serve(share: float = 0.0):
        how = LoadConfig(device="cpu", dtype="float32")
        return open_client(RealEngine(answering), run=Run(answering), audit=share, how=how)

    return serve


def run_replay(monkeypatch, capsys, *words) -> tuple[int, str]:
    """The exit status and the one line."""
    monkeypatch.setattr(sys, "argv", ["gpt2-mlx replay", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.run(replay.main)
    told = capsys.readouterr()
    lines = (told.out + told.err).splitlines()
    assert len(lines) == 1, lines
    return end.value.code, lines[0]


@pytest.fixture
def replayed(monkeypatch, capsys, tmp_path):
    def replayed(receipt: dict | str, *flags) -> tuple[int, str]:
        file = tmp_path / "receipt.json"
        file.write_text(receipt if isinstance(receipt, str) else json.dumps(receipt))
        return run_replay(monkeypatch, capsys, file, *flags)

    return replayed
