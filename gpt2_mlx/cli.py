"""What all commands share: flags made from a dataclass, and a user's mistake shown in one line."""

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
    """The settings that the command line gives; the docstring of a field is the help of its flag.

    Ends the program as `fail` where a flag or a value is not allowed.
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


def told(value: object) -> str:
    """The value of a flag, for a message: without brackets, and "none" where there is none."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def run(main: Callable[[], None]) -> None:
    """Call `main`; a ValueError or an OSError ends the program as `fail` does.

    Ctrl-C ends it with status 130, SIGTERM with 143 and a closed pipe with 141, unless `main` handles them itself.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:  # the reader is gone, as after `| head`: what is left to write is discarded
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + 13) from None
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def fail(message: str) -> None:
    """End the program with status 2, which means a mistake that the user can correct, and one line on stderr."""
    print(f"{program()}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _one_line(panel: str) -> str:
    """The text of tyro's error panel without the frame, up to the first dividing line."""
    body = panel.split("\n", 1)[-1]  # the first line is the top of the frame, with the title
    body = re.split(r"│ ─+ │|╰", body)[0]
    return " ".join(body.replace("│", " ").split())
