"""Where files are kept: beside the code in a checkout, in the user's folders where the package is installed."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped() -> Path:
    """The folder of the texts that come with the program."""
    return PACKAGE.parent / "data" if _in_checkout() else PACKAGE


def data() -> Path:
    """The folder of texts that were fetched or tokenized: data/ of a checkout, else the user's cache."""
    if _in_checkout():
        return PACKAGE.parent / "data"
    from platformdirs import user_cache_path

    return user_cache_path("gpt2_mlx")


def _in_checkout() -> bool:
    return (PACKAGE.parent / "train.py").is_file()
