"""Find and load a model: a run or a checkpoint folder of this machine, or a model of the Hugging Face hub."""

import dataclasses
import json
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mlx.core as mx

from . import adapter, checkpoint, device, lora, quantized, template, tokenizer
from .arrays import named
from .config import GPT2Config
from .files import read_json
from .model import GPT2
from .tokenizer import Vocabulary

OPENAI = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TOKENIZERS = ("vocab.json", "tokenizer.json", "vocab.txt", "*.model")  # the last two are other models' vocabularies
# The files of a model that are read here: no pickles, and no copies of the weights for other programs.
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
FILES = ["config.json", *_WEIGHTS, *_TOKENIZERS, "merges.txt", template.CONFIG, template.FILE]
FILES += [adapter.CONFIG, *adapter.FILES]


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How to load a model that is not trained."""

    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute; auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights, cache and computation; losses and log-probabilities are always float32. auto is float16 on a
    GPU, which reads half as much memory for a token, and float32 on a CPU."""
    quantize: Literal[8, 4] | None = None
    """Round the matrices to 8 or 4 bits per weight: less memory, some loss of quality. Slower on Linux CPUs."""

    def load(self, source: str | Path) -> tuple[GPT2, Vocabulary]:
        """Select the device and load the model that `find` finds. Raises as `find` and `load`."""
        device.select(self.device)
        folder = find(source)
        return load(folder, device.dtype(self.dtype), self.quantize), vocabulary(folder)


def load(folder: Path, dtype: str | None = "float32", quantize: int | None = None) -> GPT2:
    """As `checkpoint.load`; an adapter's folder gives its base with the adapter added to the weights.

    Raises a ValueError also where the base is missing, or is another one than that which the adapter was made for.
    """
    return checkpoint.whole(loading(folder, dtype, quantize))


def loading(
    folder: Path, dtype: str | None, quantize: int | None, change: Callable[[GPT2], GPT2] = lambda model: model
) -> Generator[None, None, GPT2]:
    """As `load`, in parts and with a `change`, as `checkpoint.loading`."""

    def fused(model: GPT2) -> GPT2:
        with named(folder):
            _fuse(folder, model)
        return change(model)

    return checkpoint.loading(base(folder), dtype, quantize, fused if adapter.is_in(folder) else change)


def _fuse(folder: Path, model: GPT2) -> None:
    """Make of a base what it is with the adapter of a folder: cropped and rounded as it was in training, and fused."""
    if (folder / "config.json").is_file():
        block_size = min(checkpoint.read_config(folder).block_size, model.config.block_size)
        model.config = dataclasses.replace(model.config, block_size=block_size)
        model.wpe.weight = model.wpe.weight[:block_size]
    arrays, scale = adapter.read(folder, model)
    bits, dtype = adapter.rounding(folder)
    quantized.multiply_out(model)
    if bits:
        lora.round_blocks(model, bits, dtype)
    lora.fuse(model, arrays, scale)


def base(folder: Path) -> Path:
    """The folder that holds a model's weights: itself, or that of the base where the folder holds an adapter.

    Raises a ValueError where there is no base, it is an adapter itself, or its weights are not those that the adapter
    was made for.
    """
    if not adapter.is_in(folder):
        return folder
    name, digest = adapter.base(folder)
    try:
        weights = _found(name)
    except ValueError as error:
        raise ValueError(f"{folder} is an adapter of {name}, which is not there: {error}") from None
    if adapter.is_in(weights):
        raise ValueError(f"{folder} is an adapter of {name}, which is an adapter itself: fuse that one first")
    if digest and adapter.fingerprint(weights) != digest:
        raise ValueError(f"{folder} is an adapter of {name}, but the weights there are not those that it was made for")
    return weights


def lasting_name(source: str, folder: Path) -> str:
    """How an adapter names its base: the name on the hub, or the folder's whole path."""
    return OPENAI.get(source, source) if is_on_hub(source) else str(folder.resolve())


def read_config(folder: Path) -> GPT2Config:
    """The architecture of a model; an adapter of other programs has that of its base."""
    return checkpoint.read_config(folder if (folder / "config.json").is_file() else base(folder))


def find(source: str | Path) -> Path:
    """The checkpoint folder that a user means.

    Args:
        source: a run (its best checkpoint is taken) or a checkpoint folder; gpt2, gpt2-medium, gpt2-large or gpt2-xl,
            the weights that OpenAI published (./gpt2 is a folder); or owner/name on the Hugging Face hub, unless a
            folder `owner` exists.

    Raises:
        ValueError: there is no such model, it cannot be fetched, or its vocabulary cannot be used.
    """
    folder = _found(source)
    vocabulary(folder)
    return folder


def _found(source: str | Path) -> Path:
    if is_on_hub(source):
        return _fetch(OPENAI.get(str(source), str(source)))
    try:
        return checkpoint.resolve(Path(source))
    except ValueError as error:
        raise ValueError(f"{error}, nor is it {', '.join(OPENAI)} or owner/name on the Hugging Face hub") from None


def is_on_hub(source: str | Path) -> bool:
    """Whether `find` takes a source for the name of a hub model, not for a path."""
    name = str(source)
    return name in OPENAI or (HUB_NAME.fullmatch(name) is not None and not Path(source).parent.exists())


def size(folder: Path, dtype: str) -> int:
    """The bytes that the weights of a model take in a type."""
    return read_config(folder).n_params * getattr(mx, dtype).size


def _fetch(name: str) -> Path:
    """The folder of a hub model in huggingface_hub's cache, which HF_HOME moves; HF_HUB_OFFLINE=1 forbids fetching."""
    from huggingface_hub import snapshot_download  # here, since this takes half a second and only fetching needs it
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        cached = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        if _is_whole(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except RepositoryNotFoundError:
        raise ValueError(f"the Hugging Face hub shows no model {name}; for a private one: `hf auth login`") from None
    except LocalEntryNotFoundError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{name} is not in the cache, and the Hugging Face hub cannot be asked: {reason}") from None
    except Exception as error:  # the class of a network error changes with the library's version
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{name} cannot be fetched from the Hugging Face hub: {reason}") from None


def _is_whole(folder: Path) -> bool:
    """Whether a fetched folder has all its weights: the fetching may have been interrupted."""
    index = folder / "model.safetensors.index.json"
    if adapter.is_in(folder):
        return any((folder / name).exists() for name in adapter.FILES)
    if not (folder / "config.json").exists():
        return False
    if index.exists():
        return all((folder / file).exists() for file in set(read_json(index).get("weight_map", {}).values()))
    return (folder / "model.safetensors").exists()


def vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a checkpoint folder: GPT-2's, which may have further tokens, or one of its own.

    It comes with the folder's chat template, if there is one. Raises a ValueError where its own is no byte-level BPE
    whose ids are the ranks of the merges.
    """
    tokens, conversation = _tokens(folder), template.read(folder)
    return dataclasses.replace(tokens, template=conversation) if conversation else tokens


def _tokens(folder: Path) -> Vocabulary:
    file = next((file for pattern in _TOKENIZERS for file in folder.glob(pattern)), None)
    if file is None and adapter.is_in(folder):
        return vocabulary(base(folder))
    if file is None:  # a folder without a vocabulary is taken to have GPT-2's
        return tokenizer.gpt2()
    ids = _ids(file.read_bytes())
    if ids.items() >= tokenizer.gpt2().ids.items():
        return tokenizer.gpt2()
    merges = folder / "merges.txt"
    if file.name == "vocab.json" and merges.exists():
        own = tokenizer.read(merges)
        if own.ids == ids:
            return own
    if file.name == "tokenizer.json" and (own := tokenizer.of_json(file.read_bytes())):
        return own
    raise ValueError(
        f"{file} is not GPT-2's vocabulary, nor one that follows from its merges as that does: the bytes, a token for"
        " each merge, <|endoftext|>"
    )


def _ids(content: bytes) -> dict[str, int]:
    """The id of each token, from a vocab.json or a tokenizer.json; empty where the content is neither."""
    try:
        fields = json.loads(content)
        model = fields.get("model")
        return dict(model["vocab"] if isinstance(model, dict) else fields)  # "model" is a token, too
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
