"""`ServeConfig`: every flag of serve.py, with its unit and its reason."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ..generation.drafts import DraftConfig
from ..pretrained import LoadConfig


@dataclass(frozen=True, kw_only=True)
class ServeConfig(LoadConfig, DraftConfig):
    """Serve a checkpoint over HTTP."""

    checkpoint: str | None = None
    """Run, checkpoint folder, gpt2 ... gpt2-xl, or owner/name on the hub. Default: the newest run in checkpoints/."""
    adapter: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=RUN, once for each: an adapter of the checkpoint, for requests whose `model` or `checkpoint` is this name.
    They are answered in one batch with those for others."""
    watch: bool = False
    """Go over to a new best checkpoint of the run while it is training; what was begun ends on the old one."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the server to the network."""
    port: int = 5001
    """TCP port; 0 takes a free one."""
    max_batch_size: int | None = None
    """Sequences that run at once; each has a slot in the cache (80 MB for 124M in float32). Default: as many as an
    eighth of the memory holds, at most 32."""
    prefix_cache_mb: int | None = None
    """MB of memory for keys and values of prompts that were read, for prompts that begin as these did; 0 is off. Each
    checkpoint in memory has so much. Default: a 32nd of the memory, at most 1000."""
    audit: float = 0.0
    """Share of the finished requests, 0 to 1, to draw again without any shortcut while nothing else is to do; a text
    that comes out otherwise is counted in /metrics, and logged with a receipt for `gpt2-mlx replay`."""
    max_queue: int = 256
    """Sequences that may wait for a slot; beyond it requests get 429."""
    api_key: str | None = None
    """Ask requests for `Authorization: Bearer KEY`; /health, /ready, /metrics and the page stay open."""
    cors_origin: tuple[str, ...] = ()
    """Origins whose pages may call this server, such as https://example.org; * is all."""
    allowed_host: tuple[str, ...] = ()
    """Names by which a server on a loopback address may be called beside localhost, such as those of a proxy."""
    drain_seconds: int = 30
    """After SIGTERM, how long requests that run may take to end."""
    log_format: Literal["text", "json"] = "text"
    """Log lines for people or for machines."""

    def __post_init__(self):
        super().__post_init__()
        limits = {
            "port": (0, 65_535),
            "max_batch_size": (1, 1024),
            "prefix_cache_mb": (0, 1_000_000),
            "audit": (0, 1),
            "max_queue": (1, 1_000_000),
            "drain_seconds": (1, 86_400),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} is {value}; it must be at least {low} and at most {high}")
        if self.watch and self.adapter:
            raise ValueError(f"--watch is on, but --adapter is {self.adapter[0]}; an adapter fits one checkpoint only")
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("--api-key is blank; it must have a character")
        object.__setattr__(self, "api_key", self.api_key and self.api_key.strip())  # a file's last newline, say
