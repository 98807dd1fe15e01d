"""python -m gpt2_mlx: generate, evaluate and convert models; doctor checks the machine."""

import os
import sys

from . import cli
from .commands.convert import Convert, convert
from .commands.doctor import Doctor, doctor
from .commands.evaluate import Evaluate, evaluate
from .commands.generate import Generate, generate


def main() -> None:
    commands = {Generate: generate, Evaluate: evaluate, Convert: convert, Doctor: doctor}
    flags = cli.parse_command("python -m gpt2_mlx", {settings.__name__.lower(): settings for settings in commands})
    try:
        commands[type(flags)](flags)
    except BrokenPipeError:  # `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


if __name__ == "__main__":
    cli.run(main)
