"""A contestant in a process of its own: its threads and memory disturb no other, and its peak can be told.

The process makes its contestant and warms it up; then each line it reads asks for a round, which it answers with a line
of JSON. It ends where its stdin does.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from . import ENVIRONMENT


class Worker:
    """Calling it measures a round.

    Args:
        contestant: a function of benchmarks/contestants, "module:name". It returns what measures a round.
        settings: its arguments.
    """

    def __init__(self, contestant: str, **settings: object):
        command = [sys.executable, "-m", "benchmarks.worker", contestant, json.dumps(settings)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._name = contestant
        self._process = subprocess.Popen(command, env=ENVIRONMENT, **pipes)
        self._read()  # it is warm

    def __call__(self) -> dict:
        """A round's numbers; `peak_gb` is the most memory of the process so far, in GB of 10^9 bytes."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"{self._name} ended early; what it wrote to stderr stands above")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    module, function = sys.argv[1].split(":")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    measure = getattr(importlib.import_module(f"benchmarks.contestants.{module}"), function)(**json.loads(sys.argv[2]))
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        numbers = measure()
        print(json.dumps({"peak_gb": peak_gb()} | numbers), file=answers, flush=True)


def peak_gb() -> float:
    if sys.platform == "linux":  # where ru_maxrss begins with the parent's
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


if __name__ == "__main__":
    main()
