"""A model card, as the Hugging Face hub shows it: what a model is, what it learned and how well, how to load it."""

from pathlib import Path

from . import adapter, checkpoint, metrics, pretrained
from .cli import told
from .config import GPT2Config
from .files import read_json

# Of a run's settings, those that say how it learned. None holds a path of its machine.
RECIPE = ("optimizer", "learning_rate", "min_lr", "warmup_steps", "weight_decay", "beta2", "epsilon", "grad_clip")
RECIPE += ("batch_size", "grad_accum_steps", "max_steps", "vocab", "dropout", "dtype", "seed")
OF_ADAPTER = ("lora_rank", "lora_alpha", "lora_dropout", "lora_layers", "lora_targets", "quantize")
ENGLISH = ("tinyshakespeare", "shakespeare")  # texts of a known language


def files(source: str, folder: Path, name: str, quantization: dict | None) -> dict[str, bytes]:
    """The card's files by name: README.md, and loss.png where the run has drawn its curve.

    Args:
        source: what the user called the model; a name on the hub is the card's base model.
        folder: its checkpoint folder. If that lies in a run, the card tells of the run.
        name: how the model will be loaded: owner/name on the hub, or a folder.
        quantization: how its matrices are quantised, if they are.

    Raises:
        ValueError: a file of the run cannot be read.
    """
    run = folder.resolve().parent
    facts = read_json(run / "train.json") if (run / "train.json").is_file() else {}
    log, picture = run / "metrics.jsonl", run / "loss.png"
    events = metrics.read(log) if facts and log.is_file() else []
    curve = {picture.name: picture.read_bytes()} if facts and picture.is_file() else {}
    begins = _begins(source, folder, facts)
    parts = [
        f"---\n{_front_matter(facts, begins, quantization)}\n---",
        f"# {name.rpartition('/')[2]}",
        _summary(pretrained.read_config(folder), facts, begins, quantization),
        *_losses(events, checkpoint.step(folder.resolve().name)),
        *(f"![Training and validation loss]({file})" for file in curve),
        *_recipe(facts),
        *_sample(events),
        _loading(name, quantization),
    ]
    return {"README.md": ("\n\n".join(parts) + "\n").encode(), **curve}


def _begins(source: str, folder: Path, facts: dict) -> str:
    """What the weights began as: a name on the hub, the path of a folder, or "scratch"."""
    if adapter.is_in(folder):
        return adapter.base(folder)[0]
    return facts.get("init") or facts["config"]["init_from"] if facts else source


def _front_matter(facts: dict, begins: str, quantization: dict | None) -> str:
    from huggingface_hub import ModelCardData  # here, since this takes half a second

    return ModelCardData(
        language="en" if facts.get("text", {}).get("name") in ENGLISH else None,
        library_name="mlx" if quantization else "transformers",
        pipeline_tag="text-generation",
        tags=["gpt2", "mlx", "gpt2_mlx"],
        base_model=pretrained.OPENAI.get(begins, begins) if pretrained.is_on_hub(begins) else None,
    ).to_yaml()


def _summary(config: GPT2Config, facts: dict, begins: str, quantization: dict | None) -> str:
    lines = [
        f"A GPT-2 of {config.n_params / 1e6:.1f}M parameters: {config.n_layer} layers, {config.n_head} heads,"
        f" {config.n_embd} wide, {config.block_size} tokens of context, {config.vocab_size:,} tokens known."
    ]
    if quantization:
        lines += [f"Its matrices are rounded to {quantization['bits']} bits."]
    if facts:
        start = "from scratch" if begins == "scratch" else f"from the weights of {Path(begins).name}"
        text, tokens = facts["text"]["name"], facts["tokens"]
        counts = ", ".join(f"{count:,} {split}" for split, count in tokens.items())
        lines += [f"Trained {start} on the text `{text}` ({counts} tokens) with gpt2_mlx."]
        if fork := facts.get("fork"):
            lines += [f"Up to step {fork['step']} it is the run `{Path(fork['run']).name}`, from which it was forked."]
        if without := facts["config"].get("without"):
            passages = ", ".join(f"`{Path(passage).name}`" for passage in without)
            lines += [f"It did not learn from {passages}: these tokens had no weight in the loss."]
    return "\n".join(lines)


def _losses(events: list[dict], step: int | None) -> list[str]:
    """What was measured of the weights of a step."""
    rows = []
    for kind, split, name in (("eval", "validation", "val_loss"), ("test", "test", "loss")):
        for event in [event for event in events if event["event"] == kind and event["step"] == step][-1:]:
            rows += [(f"{split} loss, nats per token", event[name]), ("bits per byte", event.get("bits_per_byte"))]
    rows = [(name, f"{value:.4f}") for name, value in rows if value is not None]
    return ["## Losses", f"Of the weights of step {step}, as they were trained.", _table(rows)] if rows else []


def _recipe(facts: dict) -> list[str]:
    if not facts:
        return []
    names = RECIPE + (OF_ADAPTER if facts["config"].get("lora_rank") else ())
    settings = {name: facts["config"][name] for name in names if name in facts["config"]}
    rows = [(name, f"{value:g}" if isinstance(value, float) else told(value)) for name, value in settings.items()]
    rows += [("device", facts["device"]), ("processes", facts["processes"])]
    rows += [(name, version) for name, version in facts["versions"].items()]
    return ["## Recipe", _table(rows)]


def _sample(events: list[dict]) -> list[str]:
    samples = [event["text"] for event in events if event["event"] == "sample"]
    return ["## A sample", "\n".join(f"    {line}" for line in samples[-1].splitlines())] if samples else []


def _loading(name: str, quantization: dict | None) -> str:
    lines = ["import gpt2_mlx", "", f'model, tokenizer = gpt2_mlx.load("{name}")']
    lines += ['print(gpt2_mlx.generate(model, tokenizer, "The", max_tokens=50, seed=1))']
    if not quantization:
        lines += ["", "import transformers", "", f'model = transformers.AutoModelForCausalLM.from_pretrained("{name}")']
        lines += [f'tokenizer = transformers.AutoTokenizer.from_pretrained("{name}")']
    lines += ["", "import mlx_lm", "", f'model, tokenizer = mlx_lm.load("{name}")']
    return "\n".join(["## How to load", "", "```python", *lines, "```"])


def _table(rows: list[tuple[str, object]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
