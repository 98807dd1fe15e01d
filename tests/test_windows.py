"""What Windows lacks is asked for only where it is needed. Here it is taken away; nothing of this ran on Windows."""

import subprocess
import sys

import pytest
from test_imports import PACKAGE, modules
from trained import ROOT, command

from gpt2_mlx import cli, device
from gpt2_mlx.commands import serve

LACKING = """
import asyncio, errno, fcntl, importlib.abc, os, runpy, sys
from types import SimpleNamespace

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "termios"):
            raise ModuleNotFoundError(name)

class Os:
    def __getattr__(self, name):
        if name in ("sysconf", "sched_getaffinity", "geteuid", "uname"):
            raise AttributeError(name)
        return getattr(os, name)

    def open(self, path, flags):
        if os.path.isdir(path):
            raise PermissionError(path)
        return os.open(path, flags)

    def fsync(self, descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "it was opened for reading")

def locking(descriptor, mode, n):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError from None

def fill(status):
    assert status[0] == 64
    status[1] = 24 << 30

for name in ("fcntl", "resource", "termios"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Blocker())
sys.modules["msvcrt"] = SimpleNamespace(locking=locking, LK_NBLCK=2)
import gpt2_mlx
from gpt2_mlx import device, files
files.os = device.os = Os()
device.ctypes.windll = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=fill))
device._tune_linux_cpu = lambda: None
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", LACKING + code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_can_be_imported():
    commands = [f"commands.{path.stem}" for path in (PACKAGE / "commands").glob("[!_]*.py")]
    names = ", ".join(f"gpt2_mlx.{name}" for name in modules() + commands)
    run(f"import {names}\nassert device.total_memory() <= 24 << 30 and device.cpu_count() > 0")
    run("from gpt2_mlx.serving import limits, server\nassert server.connection_limit() == limits.MAX_CONNECTIONS")


def test_a_run_is_made_and_found(text, tmp_path):
    out = tmp_path / "run"
    _, door, *flags = command(text, out, max_steps=4)
    code = """
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
from pathlib import Path
from gpt2_mlx import checkpoint
run = checkpoint.newest_run(Path(sys.argv[4]).parent)
held = files.lock(run)
try:
    files.lock(run)
except ValueError as error:
    print(error)
"""
    told = run(code, door, *flags)
    assert "is in use by another process" in told
    assert (out / "latest").read_text() == "step-00000004" and not (out / "latest").is_symlink()


def test_serving_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(device, "has_posix", lambda: False)
    monkeypatch.setattr(sys, "argv", ["serve.py"])
    with pytest.raises(SystemExit, match="2"):
        cli.run(serve.main)
    error = capsys.readouterr().err
    assert "serving needs macOS or Linux" in error and error.count("\n") == 1
