"""What machine this is, and whether MLX is installed whole."""

from pathlib import Path

from .. import inventory
from .finding import Finding

BACKENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")


def facts() -> dict:
    """The machine, its limits and the versions that the checks run with."""
    return {
        "machine": inventory.facts(),
        "limits": inventory.limits(),
        "versions": inventory.versions(*BACKENDS, "scipy-openblas32"),
    }


def versions(_: Path) -> Finding:
    """MLX comes as two packages, the library and its backend, that must be of one version."""
    found = inventory.versions(*BACKENDS)
    backends = {name: found[name] for name in BACKENDS if name in found}
    text = ", ".join(f"{name} {version}" for name, version in {"mlx": found["mlx"], **backends}.items())
    if len(backends) > 1:
        return Finding(False, f"{text}: two backends overwrite each other's files; keep one")
    if set(backends.values()) - {found["mlx"]}:
        return Finding(False, f"{text}: they must be equal; install both anew")
    return Finding(True, text if backends else f"{text}, with a backend of its own")
