"""What the doors share: flags made from a dataclass, an outsider's mistake told in one line."""

import contextlib
import io
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import tyro

Settings = TypeVar("Settings")

MISTAKE = 2  # exit status for what the user can mend


def parse(settings: type[Settings], default: Settings | None = None) -> Settings:
    """The settings that the command line gives; a field's docstring is its help.

    Exits with status 2 and one line on stderr for a flag or a value that is not allowed.
    """
    with _one_line_on_stderr():
        return tyro.cli(settings, default=default)


def parse_command(prog: str, commands: dict[str, type]) -> object:
    """The settings of the command that the command line names, an instance of one of `commands`. Exits as `parse`."""
    with _one_line_on_stderr():
        return tyro.extras.subcommand_cli_from_dict(commands, prog=prog)


@contextlib.contextmanager
def _one_line_on_stderr() -> Iterator[None]:
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            yield
    except SystemExit as stop:
        if stop.code:
            fail(_one_line(messages.getvalue()))
        raise


def run(main: Callable[[], None]) -> None:
    """Call `main`; a ValueError or a missing file ends the program with status 2 and one line.

    Ctrl-C ends it with 130 and SIGTERM with 143, unless `main` has handlers of its own.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def fail(message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(MISTAKE)


def _one_line(panel: str) -> str:
    """tyro's panel without its frame, up to the first rule that divides it."""
    body = panel.split("\n", 1)[-1]  # the first line is the frame with the title
    body = re.split(r"│ ─+ │|╰", body)[0]
    return " ".join(body.replace("│", " ").split())
