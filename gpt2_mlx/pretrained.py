"""Find and load a model: a run or a checkpoint folder of this machine, or a model of the Hugging Face hub."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import checkpoint, device, tokenizer
from .files import read_json
from .model import GPT2
from .tokenizer import Vocabulary

OPENAI = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TOKENIZERS = ("vocab.json", "tokenizer.json", "vocab.txt", "*.model")  # the last two are other models' vocabularies
# The files to fetch from a hub model: no pickles, and no copies of the weights for other programs.
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_FILES = ["config.json", *_WEIGHTS, *_TOKENIZERS, "merges.txt"]


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
        """Select the device and load the model that `find` finds. Raises as `find` and `checkpoint.load`."""
        device.select(self.device)
        folder = find(source)
        return checkpoint.load(folder, device.dtype(self.dtype), self.quantize), vocabulary(folder)


def find(source: str | Path) -> Path:
    """The checkpoint folder that a user means.

    Args:
        source: a run (its best checkpoint is taken) or a checkpoint folder; gpt2, gpt2-medium, gpt2-large or gpt2-xl,
            the weights that OpenAI published (./gpt2 is a folder); or owner/name on the Hugging Face hub, unless a
            folder `owner` exists.

    Raises:
        ValueError: there is no such model, it cannot be fetched, or its vocabulary cannot be used.
    """
    if is_on_hub(source):
        folder = _fetch(OPENAI.get(str(source), str(source)))
    else:
        try:
            folder = checkpoint.resolve(Path(source))
        except ValueError as error:
            raise ValueError(f"{error}, nor is it {', '.join(OPENAI)} or owner/name on the Hugging Face hub") from None
    vocabulary(folder)
    return folder


def is_on_hub(source: str | Path) -> bool:
    """Whether `find` takes a source for the name of a hub model, not for a path."""
    name = str(source)
    return name in OPENAI or (HUB_NAME.fullmatch(name) is not None and not Path(source).parent.exists())


def _fetch(name: str) -> Path:
    """The folder of a hub model in huggingface_hub's cache, which HF_HOME moves; HF_HUB_OFFLINE=1 forbids fetching."""
    from huggingface_hub import snapshot_download  # here, since this takes half a second and only fetching needs it
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        cached = Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
        if _is_whole(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
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
    if not (folder / "config.json").exists():
        return False
    if index.exists():
        return all((folder / file).exists() for file in set(read_json(index).get("weight_map", {}).values()))
    return (folder / "model.safetensors").exists()


def vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a checkpoint folder: GPT-2's, which may have further tokens, or one of its own.

    Raises a ValueError where its own is no byte-level BPE whose ids are the ranks of the merges.
    """
    file = next((file for pattern in _TOKENIZERS for file in folder.glob(pattern)), None)
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
    raise ValueError(f"{file} is not GPT-2's vocabulary, nor one that follows from a merges.txt beside it as that does")


def _ids(content: bytes) -> dict[str, int]:
    """The id of each token, from a vocab.json or a tokenizer.json; empty where the content is neither."""
    try:
        fields = json.loads(content)
        model = fields.get("model")
        return dict(model["vocab"] if isinstance(model, dict) else fields)  # "model" is a token, too
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
