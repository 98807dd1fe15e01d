"""gpt2-mlx push: a model with its card onto the Hugging Face hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import adapter, card, checkpoint, cli, layout, pretrained
from ..files import read_json

# What makes a model, for other programs too. The optimizer's state is no part of it, nor are files of other names.
FILES = (*pretrained.FILES, "generation_config.json", "tokenizer_config.json")
CARD = "README.md"


@dataclass(frozen=True)
class Push:
    """Upload a model with its card to the Hugging Face hub, in one commit."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run (its best checkpoint, else the latest) or checkpoint folder. A README.md in the folder is the card; else one
    is written, unless the hub has one already."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="owner/name")]
    """The model on the hub; it is made if need be."""
    private: bool = False
    """Show it to nobody but its owner."""


def main() -> None:
    flags = cli.parse(Push)
    if not pretrained.HUB_NAME.fullmatch(flags.name):
        raise ValueError(f"the name on the hub is {flags.name!r}; it must be owner/name")
    folder = checkpoint.resolve(flags.run)
    if adapter.is_in(folder):
        raise ValueError(f"{flags.run} is an adapter: `convert {flags.run} DST --fuse` makes the model to upload")
    quantization = layout.read_quantization(read_json(folder / "config.json"))
    files = {path.name: path for pattern in FILES for path in folder.glob(pattern)}
    own = {path.name: path for path in (folder / CARD, folder / "loss.png") if path.is_file()}
    made = card.files(str(flags.run), folder, flags.name, quantization)
    print(upload(flags.name, flags.private, files | (own if CARD in own else made)))


def upload(name: str, private: bool, files: dict[str, Path | bytes]) -> str:
    """Commit files to a model on the hub and return its address.

    A card that was written here, bytes, does not replace one that the hub has. Raises a ValueError where the files
    cannot be uploaded, or should be private and the model is public.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token  # here, since this takes half a second

    if not get_token():
        raise ValueError("the Hugging Face hub asks for a token: `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        address = api.create_repo(name, private=private or None, exist_ok=True)
        is_public = not api.model_info(name).private
        if not (private and is_public):
            if isinstance(files[CARD], bytes) and api.file_exists(name, CARD):
                files = {path: content for path, content in files.items() if path != CARD}
            operations = [CommitOperationAdd(path, content) for path, content in files.items()]
            api.create_commit(name, operations, commit_message="A model by gpt2_mlx")
    except Exception as error:  # the class of a network error changes with the library's version
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{name} cannot be uploaded to the Hugging Face hub: {reason}") from None
    if private and is_public:
        raise ValueError(f"{name} is public on the hub: nothing was uploaded, since --private was given")
    return str(address)
