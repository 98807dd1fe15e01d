"""What a container is started with. Building one needs an engine; that is not tested here."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def start(tmp_path: Path, *words: str) -> subprocess.CompletedProcess:
    """The entry point, with a python that tells what it was called with."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(
        [ROOT / "docker-entrypoint.sh", *words], capture_output=True, text=True, cwd=ROOT, env=environment
    )


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["training"], "train.py|"),
        (["training", "--data", "my text.txt", "--resume"], "train.py|--data|my text.txt|--resume|"),
        (["service"], "serve.py|--host|0.0.0.0|"),
        (["service", "--api-key", "a b"], "serve.py|--host|0.0.0.0|--api-key|a b|"),
        ([], "serve.py|--host|0.0.0.0|"),
    ],
)
def test_the_first_word_names_the_door_and_the_others_go_to_it(tmp_path, words, called):
    done = start(tmp_path, *words)
    assert (done.returncode, done.stdout) == (0, called)


def test_another_word_is_a_mistake_in_one_line(tmp_path):
    done = start(tmp_path, "serve")
    assert done.returncode == 2 and done.stdout == ""
    assert "'serve'; it must be training or service" in done.stderr and done.stderr.count("\n") == 1


def test_what_the_image_needs_is_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for needed in ("train.py", "serve.py", "gpt2_mlx", "data/shakespeare", "docker-entrypoint.sh"):
        assert needed in kept and (ROOT / needed).exists()
    for name in re.findall(r"requirements[a-z-]*\.txt", (ROOT / "Dockerfile").read_text()):
        assert (ROOT / name).is_file()
