"""gpt2-mlx, and python -m gpt2_mlx: the commands."""

import importlib
import sys
from pathlib import Path

from . import __version__, cli

COMMANDS = {
    "train": "train a GPT-2 on a text",
    "plot": "draw the loss curves of runs",
    "generate": "continue a text in the terminal",
    "serve": "serve a checkpoint over HTTP",
    "evaluate": "score a model on a text, or on HellaSwag",
    "convert": "write a model in another type, or as a GGUF file",
    "push": "upload a model with its card to the Hugging Face hub",
    "replay": "draw an answer of the service again from its receipt",
    "doctor": "check that everything holds on this machine",
}


def main() -> None:
    prog = "python -m gpt2_mlx" if Path(sys.argv[0]).name == "__main__.py" else "gpt2-mlx"
    word, *flags = sys.argv[1:] or ["--help"]
    sys.argv = [f"{prog} {word}" if word in COMMANDS else prog, *flags]  # errors name what was typed
    if word in COMMANDS:
        cli.run(importlib.import_module(f".commands.{word}", __package__).main)
    elif word in ("-h", "--help"):
        print(f"usage: {prog} COMMAND [FLAGS]\n")
        print("\n".join(f"  {name:<10} {about}" for name, about in COMMANDS.items()))
        print(f"\n`{prog} COMMAND --help` shows a command's flags; `{prog} --version` the version.")
    elif word == "--version":
        print(__version__)
    else:
        cli.fail(f"the command is {word!r}; allowed: {', '.join(COMMANDS)}")


if __name__ == "__main__":
    main()
