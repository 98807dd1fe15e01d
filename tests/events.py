"""The events of a run, and what docs/run-folder.md says they hold."""

import re
from pathlib import Path

from gpt2_mlx import metrics

ROWS = r"^\| `(\w+)` \| [^|]+ \| (?:`([\w ]+)`|the same) \|$"


def told() -> dict[str, set[str]]:
    """The fields of each event, as told."""
    text = (Path(__file__).parents[1] / "docs" / "run-folder.md").read_text()
    fields = {event: set(names.split()) for event, names in re.findall(ROWS, text, re.MULTILINE)}
    return fields | {"resume": fields["start"]}


def check(path: Path) -> set[str]:
    """The names of a run's events, each of which has the fields that are told."""
    events = metrics.read(path)
    for event in events:
        assert set(event) == {"event", "step", *told()[event["event"]]}, event["event"]
    return {event["event"] for event in events}
