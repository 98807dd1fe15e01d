"""gpt2-mlx doctor: check in half a minute that everything works on this machine."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import cli, device
from ..doctor import examination, machine
from ..doctor.finding import Finding


@dataclass(frozen=True)
class Doctor:
    """Check this machine: mathematics, training, generation, speed and memory, one line per check. The exit status is 1
    if a check fails. It writes to temporary folders, one of them in --out, and leaves nothing there."""

    json: bool = False
    """Print a report in JSON to stdout, to attach to a bug report; the lines go to stderr."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute."""
    out: str = "checkpoints"
    """The folder for runs, whose disk is checked: not every disk can sync, lock and link."""


def main() -> None:
    flags = cli.parse(Doctor)
    device.select(flags.device)
    out = sys.stderr if flags.json else sys.stdout
    facts = machine.facts()
    for group in facts.values():
        print(", ".join(f"{name} {value}" for name, value in group.items()), file=out, flush=True)

    def tell(name: str, finding: Finding, seconds: float) -> None:
        verdict = "ok    " if finding.ok else "NOT OK"
        print(f"{verdict} {name}: {finding.text} [{seconds:.1f} s]", file=out, flush=True)

    results = examination.examine(tell, Path(flags.out))
    failed = [result["check"] for result in results if not result["ok"]]
    seconds = sum(result["seconds"] for result in results)
    verdict = f"{len(failed)} of {len(results)} checks are NOT OK: {'; '.join(failed)}" if failed else "all is ok"
    print(f"{verdict} [{seconds:.0f} s]", file=out)
    if flags.json:
        print(json.dumps({"ok": not failed, **facts, "checks": results}, indent=2, ensure_ascii=False))
    raise SystemExit(1 if failed else 0)
