"""Whether the requirements files and the project install from wheels alone, wherever the README says that they do.

Resolves them with uv for Macs and Linux machines that are not there. What is resolved together can be installed alone,
too. Needs a package index, and Python 3.11.
"""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
MACS = [("aarch64-apple-darwin", version) for version in ("14.0", "15.0")]
LINUX = [(f"{machine}-manylinux_2_36", "") for machine in ("x86_64", "aarch64")]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
FILES = {path.name for path in ROOT.glob("requirements*.txt")}
CUDA, PEERS = {"requirements-cuda.txt"}, {"requirements-parity.txt", "requirements-bench.txt"}


def cases() -> list[tuple]:
    """Files that are resolved together, the platform, macOS's version, Python's."""
    everywhere = [
        (FILES - CUDA - (PEERS if python == "3.10" else set()), *machine, python)
        for machine, python in itertools.product(MACS + LINUX, PYTHONS)
    ]
    return everywhere + [(CUDA, *machine, python) for machine, python in itertools.product(LINUX, PYTHONS)]


def extras() -> str:
    """What the project's extras need; the project itself needs what requirements.txt says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return "\n".join(itertools.chain(*project["optional-dependencies"].values()))


def problem(files: set[str], platform: str, macos: str, python: str) -> str:
    """Why the files cannot be installed on a machine; nothing where they can."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--only-binary=:all:", *sorted(files), "-"]
    command += ["--python-platform", platform, "--python-version", python]
    environment = os.environ | ({"MACOSX_DEPLOYMENT_TARGET": macos} if macos else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, input=extras(), capture_output=True, text=True)
    where = f"{', '.join(sorted(files))} on {platform} {macos}, Python {python}"
    return f"{where}:\n{done.stderr}" if done.returncode else ""


def main() -> None:
    with ThreadPoolExecutor(12) as pool:  # they wait for the index
        problems = list(pool.map(lambda case: problem(*case), cases()))
    print("".join(problems) + f"{len(problems)} installs resolved, {sum(map(bool, problems))} of them impossible")
    sys.exit(any(problems))


if __name__ == "__main__":
    main()
