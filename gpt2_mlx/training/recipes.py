"""Settings that learn well, by preset and vocabulary: how often to read the text, at which rate, and so on."""

from ..config import PRESETS, GPT2Config

# tiny and baby are tuned, on Tiny Shakespeare. Short runs on little text need Muon and a large decay: with the same
# number of tokens tiny had a loss 0.55 nats higher by AdamW at 3e-3, 0.08 by dropout of 0.1, 0.04 by a decay of 0.1.
_NAMES = ["passes", "max_steps", "batch_size", "warmup_steps", "learning_rate", "optimizer", "weight_decay", "epsilon"]
_RECIPES = {
    "tiny": (2.3, 600, 8, 30, 6e-3, "muon", 0.6, 1e-4),
    "baby": (2.6, 2000, 4, 30, 4e-3, "muon", 0.6, 1e-4),
    "gpt2": (2, 2000, 4, 100, 6e-4, "adamw", 0.1, 1e-8),
    "gpt2-medium": (2, 2000, 4, 100, 3e-4, "adamw", 0.1, 1e-8),
    "gpt2-large": (2, 2000, 2, 100, 2.5e-4, "adamw", 0.1, 1e-8),
    "gpt2-xl": (2, 2000, 1, 100, 2e-4, "adamw", 0.1, 1e-8),
}
_EVERY = {"validations": 4, "patience": 5}
RECIPES = {preset: _EVERY | dict(zip(_NAMES, values)) for preset, values in _RECIPES.items()}

# With a vocabulary of its own a text is read more often: its tokens are all frequent. What GPT-2's 50,257 take in a
# step goes into wider blocks. With 32 windows of 64 tokens tiny learnt faster than with 16 of 128.
OWN_VOCABULARY = {
    "tiny": {"n_head": 3, "n_embd": 192, "block_size": 64, "dropout": 0.1, "passes": 10, "max_steps": 2000}
    | {"batch_size": 32, "learning_rate": 8e-3, "epsilon": 1e-8, "validations": 8},
    "baby": {"dropout": 0.2, "passes": 20, "max_steps": 4000, "batch_size": 16}
    | {"learning_rate": 4e-3, "epsilon": 1e-8, "validations": 10},
}
LEAST_STEPS = 100  # for a text of a few pages; of its validations the best one counts
ONLY_HERE = ("passes", "validations")  # max_steps and the intervals follow from them


def from_scratch(preset: str, gpt2_vocabulary: bool = True) -> dict:
    """The settings of a preset, and where it has another vocabulary than GPT-2's, its shape where that differs, too."""
    return RECIPES[preset] | ({} if gpt2_vocabulary else OWN_VOCABULARY.get(preset, {}))


def fine_tuning(init: GPT2Config) -> dict:
    """The recipe for fine-tuning: few steps at a low rate, stopped when the validation loss stops improving.

    The peak rate is a tenth of the rate for training a model of this size from scratch.
    """
    size = (init.n_layer, init.n_embd)
    preset = next((name for name, p in PRESETS.items() if (p.n_layer, p.n_embd) == size), "gpt2")
    recipe = RECIPES[preset]
    rate = recipe["learning_rate"] / 10
    gentle = {"optimizer": "adamw", "learning_rate": rate, "weight_decay": 0.1, "epsilon": 1e-8}
    return recipe | gentle | {"max_steps": 300, "passes": 5, "validations": 12, "warmup_steps": 20, "patience": 3}


def adapter(init: GPT2Config) -> dict:
    """The recipe for an adapter: that of fine-tuning, at a rate ten times as high (Schulman 2025), without decay.

    Decay would draw the adapter, hence the model, back to the base. A model of any size learns at this rate, since the
    adapter's rank, not the model's width, tells how far a step moves.
    """
    return fine_tuning(init) | {"learning_rate": 2e-4, "weight_decay": 0.0}


def schedule(settings: dict, given: dict, tokens: float) -> dict:
    """The settings that follow from a recipe and from the number of tokens to train on."""
    steps_per_pass = tokens / (settings["batch_size"] * settings["grad_accum_steps"] * settings["block_size"])
    steps = int(max(LEAST_STEPS, min(settings["max_steps"], settings["passes"] * steps_per_pass)))
    steps = given.get("max_steps", steps)
    part = max(25, steps // settings["validations"])
    eval_interval = given.get("eval_interval", int(max(1, min(part, 2 * steps_per_pass))))
    return {
        "max_steps": steps,
        "warmup_steps": min(settings["warmup_steps"], steps // 10),
        "min_lr": settings["learning_rate"] / 10,
        "eval_interval": eval_interval,
        "sample_interval": max(part, eval_interval),
        "save_interval": max(part, eval_interval),
    }
