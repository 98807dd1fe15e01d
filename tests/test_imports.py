"""The rules of the house: who may import whom, and that importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gpt2_mlx"
# Each file may import the files before it.
GROUND = ["blas", "config", "cli", "files", "folders", "tokenizer", "template", "device", "inventory", "metrics"]
GROUND += ["elementwise"]
TRUNK = ["arrays", "model", "quantized", "kv_cache", "layout", "lora", "adapter", "checkpoint", "pretrained", "gguf"]
TRUNK += ["plot", "card"]
WINGS = {
    "corpus": "documents shards source passages loader examples packing dataset example_dataset vocabularies",
    "generation": "params scheduler rows drafts outputs constraints capacity prefixes adapters decoder prefill sampling"
    " draft_model engine text",
    "training": "recipes config loss optim ranks precision adapting evaluation hellaswag progress report memory step"
    " plan trainer budget fork settle run track",
    "serving": "limits config served_adapters answers errors fields formats schemas parsing messages submission"
    " examiner engines jobs pulse async_engine watch telemetry worker served_run chat choice receipts audit"
    " service completions forms intake tokens guard app connections server openapi docs pages",
    "doctor": "reference chips finding tolerance specimens mathematics attention steps draws texts footprint storage"
    " speed machine examination",
}
WINGS = {wing: [f"{wing}.{name}" for name in names.split()] for wing, names in WINGS.items()}
REACH = {  # what a wing may import beside itself
    "corpus": [],
    "generation": [],
    "training": ["corpus", "generation"],
    "serving": ["generation"],
    "doctor": ["corpus", "generation", "training", "serving"],
}
ROOT = ["__init__", "__main__"]  # the public face may import all, and so may the commands


def modules() -> list[str]:
    names = [str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for path in PACKAGE.rglob("*.py")]
    return [name for name in names if name not in ROOT and not name.endswith(".__init__") and "commands." not in name]


def imports_of(module: str) -> set[str]:
    """The package's own modules that a module imports, at any depth of its code."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    parents = module.split(".")[:-1]
    known, found = set(modules()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parents[: len(parents) - node.level + 1]
            if node.module:
                base = [*base, *node.module.split(".")]
            candidates = [".".join([*base, alias.name]) for alias in node.names] + [".".join(base)]
            found |= known & set(candidates)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.startswith("gpt2_mlx") for name in names), f"{module} imports absolutely"
    return found


def allowed_for(module: str) -> set[str]:
    ground = GROUND + TRUNK
    if module in ground:
        return set(ground[: ground.index(module)])
    wing = module.split(".")[0]
    others = [name for reach in REACH[wing] for name in WINGS[reach]]
    return {*ground, *others, *WINGS[wing][: WINGS[wing].index(module)]}


@pytest.mark.parametrize("module", modules())
def test_imports_only_what_lies_below(module):
    assert imports_of(module) <= allowed_for(module)


def test_importing_everything_does_nothing():
    names = ", ".join(f"gpt2_mlx.{name}" for name in modules())
    code = f"""
import sys, threading
def audit(event, args):
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        raise SystemExit(f"an import writes {{args}}")
    if event == "socket.connect":
        raise SystemExit("an import connects")
import gpt2_mlx  # may compile the kernel of the BLAS
sys.dont_write_bytecode = True
sys.addaudithook(audit)
import {names}
import mlx.core as mx, logging
assert threading.active_count() == 1
assert mx.get_peak_memory() == 0, "an import computes"
assert not logging.getLogger().handlers
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


@pytest.mark.parametrize("module", ["generation.params", "generation.scheduler"])
def test_who_runs_next_is_told_without_arrays(module):
    source = (PACKAGE / f"{module.replace('.', '/')}.py").read_text()
    assert "mlx" not in source and "numpy" not in source


@pytest.mark.parametrize("door", ["train.py", "serve.py", "plot_loss.py"])
def test_no_door_imports_mlx_before_the_package_has_put_a_blas_in_front(door):
    source = (PACKAGE.parent / door).read_text()
    assert "import mlx" not in source and "from mlx" not in source


def test_only_the_ground_asks_what_machine_this_is():
    for module in set(modules()) - {"device", "inventory", "blas"}:
        source = (PACKAGE / f"{module.replace('.', '/')}.py").read_text()
        for question in ("sys.platform", "platform.machine", "mx.metal", "mx.cuda", "mx.gpu", "mx.cpu", "device_info"):
            assert question not in source, (module, question)
