"""What the doors share: flags made from a dataclass, an outsider's mistake told in one line."""

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tyro

Settings = TypeVar("Settings")


def parse(settings: type[Settings], default: Settings | None = None) -> Settings:
    """The settings that the command line gives; a field's docstring is its help.

    Exits with status 2 and one line on stderr for a flag or a value that is not allowed.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(settings, default=default, prog=program())
    except SystemExit as stop:
        if stop.code:
            fail(_one_line(messages.getvalue()))
        raise


def program() -> str:
    """What was typed: "train.py", "gpt2-mlx train" or "python -m gpt2_mlx train"."""
    return Path(sys.argv[0]).name


def command(word: str) -> str:
    """How to type another command: "python train.py" in a checkout, else "gpt2-mlx train"."""
    if program().endswith(".py"):
        return f"python {word}.py"
    return f"{program().rpartition(' ')[0] or 'gpt2-mlx'} {word}"


def run(main: Callable[[], None]) -> None:
    """Call `main`; a ValueError or a missing file ends the program with status 2 and one line.

    Ctrl-C ends it with 130, SIGTERM with 143 and a pipe that nobody reads with 141, unless `main` handles them itself.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:  # `| head`: what is left to write goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + 13) from None
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def fail(message: str) -> None:
    """End the program with status 2, which stands for a mistake that the user can correct, and with one line."""
    print(f"{program()}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _one_line(panel: str) -> str:
    """tyro's panel without its frame, up to the first rule that divides it."""
    body = panel.split("\n", 1)[-1]  # the first line is the frame with the title
    body = re.split(r"│ ─+ │|╰", body)[0]
    return " ".join(body.replace("│", " ").split())
