"""A run's metrics.jsonl: one JSON object per line, each with "event" and "step". Only this module knows the format.

Events: start resume train eval sample save skip test end; docs/run-folder.md says what each holds.
"""

import errno
import json
import os
from itertools import takewhile
from pathlib import Path

from .files import finite, new_file


def write(log: Path, event: str, step: int, /, **fields) -> str | None:
    """Append one event, a whole line or nothing; a number that JSON cannot say (nan, inf) is written as null.

    Returns why it could not be written, on a full disk say: a run goes on without its log. None if it was.
    """
    fields = {name: finite(value) for name, value in fields.items()}
    line = json.dumps({"event": event, "step": step, **fields}, ensure_ascii=False).encode() + b"\n"
    try:
        with log.open("ab", buffering=0) as file:
            if (written := file.write(line)) < len(line):
                file.truncate(file.tell() - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        return f"{log} cannot be written: {error.strerror}"
    return None


def read(path: Path) -> list[dict]:
    """All events of a file, in order, without a last line that was not written to its end.

    Raises a ValueError where another line is not a JSON object with "event" and "step".
    """
    return part(path)[0]


def part(path: Path, start: int = 0, end: int | None = None) -> tuple[list[dict], int]:
    """The events of the whole lines between two byte offsets, and the offset after the last one. Raises as `read`."""
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(None if end is None else end - start)
    content = content[: content.rfind(b"\n") + 1]  # what follows the last newline is empty or not whole
    events, lines = [], content.decode(errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            event = json.loads(line)
            events.append({"event": event["event"], "step": event["step"], **event})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(f"{path}, line {number} is not an event of a run: {line[:80]!r}") from None
    return events, start + len(content)


def rewind(path: Path, step: int) -> list[dict]:
    """Drop the events after `step`, since a resumed run writes them again; returns the events that stay."""
    if not path.exists():
        return []
    events = takewhile(lambda e: e["event"] != "test", read(path))  # the test and its samples come last
    events = [e for e in events if e["step"] <= step and e["event"] != "end"]
    with new_file(path) as aside:
        aside.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in events), encoding="utf-8")
    return events
