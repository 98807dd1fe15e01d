"""What the system tells of a service's processes."""

import os
import subprocess
from pathlib import Path


def children_of(process: int) -> list[int]:
    """The living children of a process, the newest last."""
    rows = [line.split() for line in ps("-A", "-o", "ppid=,pid=,stat=").splitlines()]
    return sorted(int(pid) for parent, pid, stat in rows if parent == str(process) and stat[0] != "Z")


def megabytes(process: int) -> float:
    told = ps("-o", "rss=", "-p", str(process)).strip() if process else ""
    return int(told) / 1e3 if told else 0.0


def processor_seconds(service: int) -> float:
    """What the processors have worked for a service and its children that live."""
    return sum(map(_processor_seconds, [service, *children_of(service)]))


def _processor_seconds(process: int) -> float:
    stat = Path(f"/proc/{process}/stat")
    if stat.exists():  # Linux, whose ps tells whole seconds
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    minutes, _, seconds = ps("-o", "time=", "-p", str(process)).strip().rpartition(":")
    return sum(60.0 ** (i + 1) * int(part) for i, part in enumerate(reversed(minutes.split(":")))) + float(seconds)


def ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True).stdout
