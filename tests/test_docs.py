"""What the documents say is what the code has."""

import ast
import re
from pathlib import Path

import pytest
from test_imports import GROUND, PACKAGE, imports_of, modules

from gpt2_mlx.__main__ import COMMANDS
from gpt2_mlx.config import PRESETS
from gpt2_mlx.model import GPT2
from gpt2_mlx.serving import chat, engines, limits, schemas
from gpt2_mlx.serving.config import ServeConfig
from gpt2_mlx.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE, LIMITS = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("architecture", "limits"))


@pytest.mark.parametrize(
    "preset, vocab", [*((preset, "gpt2") for preset in PRESETS), ("tiny", "1024"), ("baby", "1024")]
)
def test_the_table_of_presets(preset, vocab):
    recipe = TrainConfig(preset=preset, vocab=vocab).resolved(on_gpu=False)
    shape = recipe.model_config()
    row = [
        preset if vocab == "gpt2" else f"{preset}, `--vocab {vocab}`",
        shape.n_layer,
        shape.n_head,
        shape.n_embd,
        shape.block_size,
        f"{GPT2(shape).n_params / 1e6:.1f}M",
        recipe.optimizer,
        recipe.max_steps,
        recipe.batch_size,
        f"{recipe.learning_rate:g}",
        f"{recipe.weight_decay:g}",
    ]
    assert f"| {' | '.join(map(str, row))} |" in README


def test_auto_follows_the_device():
    assert TrainConfig().resolved(on_gpu=False).preset == "tiny"
    assert TrainConfig().resolved(on_gpu=True).preset == "baby"


def part_of(module: str) -> str:
    return module.split(".")[0] if "." in module else "ground" if module in GROUND else "trunk"


def test_the_picture_of_the_house():
    """The arrows are those of the imports, without those that follow from others."""
    below = {}
    for module in modules():
        below.setdefault(part_of(module), set()).update(map(part_of, imports_of(module)))
    for file in (PACKAGE / "commands").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                parts = {name if (PACKAGE / name).is_dir() else part_of(name) for name in names}
                below.setdefault("commands", set()).update(parts)
    for part, others in below.items():
        others.discard(part)
    beyond = {part: set().union(*(below[other] for other in others)) for part, others in below.items()}
    arrows = {(part, other) for part, others in below.items() for other in others - beyond[part]}
    assert set(re.findall(r"^  (\w+) --> (\w+)$", ARCHITECTURE, re.MULTILINE)) == arrows


def test_every_limit_of_a_request_is_told():
    rows = re.findall(r"\| ([\d,]+) \| `(\w+)` \|", LIMITS)
    told = {name: int(number.replace(",", "")) for number, name in rows}
    in_code = {name: value for name, value in vars(limits).items() if name.isupper()}
    in_fields = {"MAX_TOP_K", "MAX_BIAS", "N_SEEDS"}  # told with each field in /docs
    assert told == {name: value for name, value in in_code.items() if name not in in_fields}


def test_the_flags_and_numbers_of_the_limits():
    for flag, default in (("max_queue", 256), ("drain_seconds", 30)):
        assert getattr(ServeConfig, flag) == default
        assert re.search(rf"\| {default} \| `--{flag.replace('_', '-')}` \|", LIMITS)
    assert f"Up to {engines.MAX_ENGINES} checkpoints" in LIMITS
    assert f"after {engines.KEEP_SECONDS:g} seconds of idleness" in LIMITS


def test_the_readme_names_every_command_and_no_flag_that_there_is_not():
    assert set(re.findall(r"`gpt2-mlx (\w+)", README)) >= set(COMMANDS)
    sources = " ".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for flag in set(re.findall(r"--([a-z][a-z-]+)", README)):
        name = flag.replace("-", "_").removeprefix("no_")
        is_ours = re.search(rf"^    {name}: ", sources, re.MULTILINE)
        assert is_ours or flag in FOREIGN_FLAGS, flag


FOREIGN_FLAGS = {"help", "version", "lora"}  # of every program, and llama.cpp's


@pytest.mark.parametrize("model", [schemas.SentenceRequest, schemas.CompletionRequest, chat.ChatRequest])
def test_the_readme_names_the_fields_of_requests(model):
    missing = [name for name in model.model_fields if f"`{name}`" not in README and f" {name} " not in README]
    assert not missing
