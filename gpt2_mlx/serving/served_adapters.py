"""`ServedAdapters`: the adapters that are served by name, beside the checkpoint that they were made for."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from .. import adapter, checkpoint, pretrained

_FLAG = re.compile(r"([A-Za-z0-9._-]{1,64})=(.+)")


@dataclass(frozen=True)
class ServedAdapters:
    """Adapters of one base, none by default."""

    base: Path | None = None  # the folder of the checkpoint that they were made for
    folders: dict[str, Path] = field(default_factory=dict)  # by name
    block_sizes: dict[str, int] = field(default_factory=dict)  # how many tokens each learned to look back on

    def place(self, folder: Path) -> tuple[Path, int]:
        """The checkpoint whose engine draws what is asked of a folder, and the number of the adapter, 0 for none."""
        folders = list(self.folders.values())
        return (self.base, 1 + folders.index(folder)) if folder in folders else (folder, 0)


NO_ADAPTERS = ServedAdapters()


def find(flags: Collection[str], base: Path, taken: Collection[str], quantize: int | None) -> ServedAdapters:
    """The adapters that the values of --adapter name.

    Args:
        flags: each NAME=RUN.
        base: the folder of the checkpoint that is served.
        taken: names that no adapter may have.
        quantize: the bits to which the base is rounded.

    Raises:
        ValueError: a value is not allowed, or an adapter does not fit the base; it shows the value.
    """
    if flags and adapter.is_in(base):
        raise ValueError(f"--adapter needs a base, but {base} is an adapter itself: serve its base, and it by name")
    digest = adapter.fingerprint(base) if flags else ""
    folders, block_sizes = {}, {}
    for flag in flags:
        if not (match := _FLAG.fullmatch(flag)):
            allowed = "NAME=RUN, the name 1 to 64 letters, digits, dots, hyphens and underscores"
            raise ValueError(f"--adapter is {flag}; it must be {allowed}")
        name, run = match.groups()
        if name in folders:
            raise ValueError(f"--adapter gives the name {name} twice; each adapter must have its own")
        if name in taken or checkpoint.step(name) is not None:
            raise ValueError(f"--adapter is {flag}, but {name} is the name of a checkpoint; it must be another one")
        try:
            folders[name] = _fitting(pretrained.find(run), base, digest, quantize).resolve()
        except ValueError as error:
            raise ValueError(f"--adapter is {flag}: {error}") from None
        own, of_base = (pretrained.read_config(each).block_size for each in (folders[name], base))
        block_sizes[name] = min(own, of_base)
    return ServedAdapters(base.resolve(), folders, block_sizes)


def _fitting(folder: Path, base: Path, digest: str, quantize: int | None) -> Path:
    """The folder of an adapter. Raises a ValueError where it is none, or none of the base with this fingerprint."""
    if not adapter.is_in(folder):
        raise ValueError(f"{folder} is no adapter (no {adapter.CONFIG}); it must be one of {base}")
    name, made_for = adapter.base(folder)
    if (made_for or adapter.fingerprint(pretrained.base(folder))) != digest:
        raise ValueError(f"{folder} is an adapter of {name}, whose weights are not those of {base}")
    if pretrained.vocabulary(folder).ids != pretrained.vocabulary(base).ids:
        raise ValueError(f"{folder} has another vocabulary than {base}")
    bits, _ = adapter.rounding(folder)
    if bits not in (None, quantize):
        raise ValueError(f"{folder} learned on a base rounded to {bits} bits; it needs --quantize {bits}")
    return folder
