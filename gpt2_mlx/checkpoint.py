"""Save and load a checkpoint folder: config.json, model.safetensors, and the state that only training needs."""

import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from . import adapter, cli, layout, tokenizer
from .arrays import named, read_arrays, write_arrays
from .config import GPT2Config
from .files import link, new_folder, read_json, remove_folder, write_json
from .model import GPT2
from .tokenizer import Vocabulary

DTYPES = ("float32", "bfloat16", "float16")
LINKS = ("latest", "best")  # of a run, to its checkpoints
FOR_TRAINING = ("optimizer.safetensors", "state.json")  # what only training needs
_NAME = re.compile(r"step-(\d{8,})")


def save(
    folder: Path,
    model: GPT2,
    optimizer_state: dict | None = None,
    state: dict | None = None,
    vocabulary: Vocabulary | None = None,
) -> None:
    """Write a checkpoint folder; it appears whole or not at all. Of a model with an adapter it holds the adapter alone.

    The model's parameters keep their dtype. Only training gives `optimizer_state`, a tree of arrays stored as
    optimizer.safetensors, and `state`, stored as state.json. The vocabulary is GPT-2's by default.
    """
    vocabulary = vocabulary or tokenizer.gpt2()
    with new_folder(folder) as aside:
        if model.lora:
            adapter.write(aside, model)
        else:
            write_arrays(aside / "model.safetensors", layout.tensors(model))
        write_json(aside / "config.json", layout.config_fields(model) | vocabulary.ends)
        for name, content in vocabulary.files(model.config.block_size).items():
            (aside / name).write_bytes(content)
        if state is not None:
            write_arrays(aside / "optimizer.safetensors", dict(tree_flatten(optimizer_state)))
            write_json(aside / "state.json", state)


def load(folder: Path, dtype: str | None = "float32", quantize: int | None = None) -> GPT2:
    """The model of a checkpoint folder, its weights evaluated.

    Args:
        folder: it holds config.json, and model.safetensors or several weight files and their index.
        dtype: one of `DTYPES`; None keeps the stored one.
        quantize: 8 or 4 bits per weight; None rounds nothing.

    Raises:
        ValueError: a file is missing or broken, the tensors are not exactly those of the configuration, or some hold
            values that are not finite; the message names the file or the tensors.
    """
    return whole(loading(folder, dtype, quantize))


def whole(parts: Generator[None, None, GPT2]) -> GPT2:
    """What is loaded in parts."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            return end.value


def loading(
    folder: Path, dtype: str | None, quantize: int | None, change: Callable[[GPT2], GPT2] = lambda model: model
) -> Generator[None, None, GPT2]:
    """As `load`, in parts: each `next` reads one of the tensors, the last one returns the model.

    A tensor is let go as what becomes of it is evaluated, so memory holds the result and one tensor as it is stored.
    `change` gets the model with the stored weights, none of which is read yet, and returns the one to go on with: the
    same, its weights changed, or another one with parameters of the same names. It evaluates nothing.
    """
    if dtype not in (*DTYPES, None):
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    config, stored = read_config(folder), _read_tensors(folder)
    with named(folder / "config.json"):
        quantization = layout.read_quantization(read_json(folder / "config.json"))
        if config.n_layer > len(stored):  # a wrong number must not make a huge model first
            raise ValueError(f"n_layer is {config.n_layer}, but there are {len(stored)} tensors")
        model = GPT2(config)
        if quantization:
            scales = {name.removeprefix("model.") for name in stored if name.endswith(".scales")}
            if "h.0.attn.c_attn.scales" not in scales:
                raise ValueError(f"quantization is {quantization}, but h.0.attn.c_attn has no scales")
            nn.quantize(model, **quantization, class_predicate=lambda name, _: f"{name}.scales" in scales)
    finite = _fill(model, folder, stored)
    del stored
    model = change(model)
    if dtype:
        model.set_dtype(getattr(mx, dtype))
    if quantize:
        with named(folder):
            model.quantize(quantize)
    model.update(tree_map(mx.contiguous, model.parameters()))  # a hub's weights are (in, out) views, slow in products
    yield from _evaluating(model, folder, finite)
    return model


def load_weights(folder: Path, model: GPT2) -> None:
    """Put a checkpoint's weights into a model of the same shape, in the memory layout of new weights. Raises as `load`.

    The order in which a product is summed may depend on the layout, and a resumed run must have the same bits as a run
    that was never stopped.
    """
    if model.lora:
        return adapter.restore(folder, model)
    finite = _fill(model, folder, _read_tensors(folder))
    model.update(tree_map(mx.contiguous, model.parameters()))
    for _ in _evaluating(model, folder, finite):
        pass


def load_training(folder: Path, optimizer_state: dict) -> tuple[dict, dict]:
    """The saved optimizer state, a tree like `optimizer_state`, and the content of state.json. Raises as `load`."""
    path = folder / "optimizer.safetensors"
    arrays = read_arrays(path)
    with named(path):
        layout.check(arrays, dict(tree_flatten(optimizer_state)))
        mx.eval(arrays)
    return tree_unflatten(list(arrays.items())), read_json(folder / "state.json")


def resolve(path: Path) -> Path:
    """The checkpoint folder at a path, or a run's best or else latest one. Raises a ValueError where there is none."""
    for folder in (linked(path.parent, path.name), linked(path, "best"), linked(path, "latest")):
        if (folder / "config.json").is_file() or adapter.is_in(folder):
            return folder
    raise ValueError(f"{path} is neither a checkpoint (no config.json) nor a run with one")


def step(name: str) -> int | None:
    """The step in a checkpoint's name: 300 for "step-00000300", None for other names."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def name_of(step: int) -> str:
    """The name of the checkpoint of a step: "step-00000300"."""
    return f"step-{step:08d}"


def all_of(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, the oldest first. What only looks like one is none of ours."""
    folders = [path for path in run.glob("step-*") if step(path.name) is not None and not path.is_symlink()]
    return sorted((path for path in folders if path.is_dir()), key=lambda path: step(path.name))


def to_resume(run: Path) -> Path | None:
    """The checkpoint to go on from: what `latest` leads to, else the newest that is whole; None where there is none."""
    return next((path for path in (linked(run, "latest"), *reversed(all_of(run))) if is_whole(path)), None)


def linked(run: Path, name: str) -> Path:
    """Where the run's link `latest` or `best` leads to; the link is a file with the name on a disk without links."""
    link = run / name
    return run / link.read_text(encoding="utf-8").strip() if name in LINKS and link.is_file() else link


def is_whole(folder: Path) -> bool:
    """Whether a training can go on from a folder."""
    weights = adapter.FILES if adapter.is_in(folder) else ("model.safetensors",)
    return all((folder / name).is_file() for name in ("config.json", *weights, *FOR_TRAINING))


def newest_run(folder: Path, file: str | None = None) -> Path:
    """The run in a folder with the newest `file`, or latest checkpoint. Raises a ValueError where there is none."""
    files = {run: run / file if file else linked(run, "latest") / "config.json" for run in folder.glob("*")}
    written = {run: path.stat().st_mtime for run, path in files.items() if path.is_file()}
    if not written:
        raise ValueError(f"there is no run under {folder}/: train one first with `{cli.command('train')}`, or name one")
    return max(written, key=written.get)


def prune(run: Path, keep: int) -> None:
    """Delete a run's checkpoints, except the newest `keep` and those that `latest` and `best` point to."""
    kept = {linked(run, name).resolve().name for name in LINKS}
    for folder in (path for path in all_of(run)[:-keep] if path.name not in kept):
        remove_folder(folder)


def mark(run: Path, name: str, folder: Path) -> None:
    """Point the run's link `latest` or `best` to one of its checkpoints."""
    link(run / name, folder.name)


def read_config(folder: Path) -> GPT2Config:
    """The architecture in a folder's config.json. Raises a ValueError that names a missing or impossible field."""
    path = folder / "config.json"
    fields = read_json(path)
    with named(path):
        return layout.read_config(fields)


def _fill(model: GPT2, folder: Path, stored: dict[str, mx.array]) -> dict[str, mx.array]:
    """Put stored tensors into a model, unread. Returns by name whether their values are finite, not yet evaluated."""
    with named(folder):
        parameters = layout.parameters(stored, model)
    model.update(tree_unflatten(list(parameters.items())))
    return {name: mx.sum(array * 0) == 0 for name, array in parameters.items()}  # faster than mx.isfinite


def _evaluating(model: GPT2, folder: Path, finite: dict[str, mx.array]) -> Iterator[None]:
    """Evaluate a model's parameters one by one, each with what `_fill` returned for it, which reads the same tensor."""
    bad = []
    with named(folder):
        for name, array in tree_flatten(model.parameters()):
            is_finite = finite.pop(name, mx.array(True))
            mx.eval(array, is_finite)
            bad += [] if is_finite else [f"{name} holds values that are not finite"]
            yield
        bad += [f"{name} holds values that are not finite" for name, is_finite in finite.items() if not is_finite]
        layout.refuse(bad)


def _read_tensors(folder: Path) -> dict[str, mx.array]:
    """The tensors of model.safetensors, or of all the weight files that an index lists."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return read_arrays(whole)
    if not index.exists():
        raise ValueError(
            f"{folder} has no model.safetensors; pickles (.bin, .pt) are not opened, since they may run any code."
            " To convert yours: transformers.AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(FOLDER)"
        )
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
        raise ValueError(f"{index}: weight_map must map names to files beside it")
    stored: dict[str, mx.array] = {}
    for file in sorted(set(files.values())):
        arrays = read_arrays(folder / file)
        with named(folder / file):
            layout.refuse([f"{name} is in another file too" for name in arrays.keys() & stored.keys()])
        stored |= arrays
    return stored
