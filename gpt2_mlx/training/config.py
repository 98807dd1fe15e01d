"""`TrainConfig`: every flag of train.py, with its unit and its reason."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import tokenizer
from ..cli import told
from ..config import PRESETS, GPT2Config
from ..lora import TARGETS
from . import recipes


@dataclass(frozen=True)
class TrainConfig:
    """Train a GPT-2 on a text. A setting that is not given (None) follows from the preset and the device."""

    data: str = "tinyshakespeare"
    """What to learn from: tinyshakespeare, shakespeare, a file or a folder of files (.txt .txt.gz .jsonl .jsonl.gz
    .parquet; the last three with a field `text`), a folder of token shards, or JSON lines of prompts and answers
    (`prompt` and `completion`, or `messages`), of which only the answers count; docs/chat.md tells more."""
    vocab: str | None = None
    """Tokens to read the text in: gpt2 (50257 tokens), bytes (257), or a number of tokens, such as 1024: that many are
    made from the training split, which suits a small text and a small model. Default: gpt2, or that of --init-from or
    of the shards."""
    preset: Literal["auto", "tiny", "baby", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = "auto"
    """Size of the model and its recipe; auto is baby on a GPU and tiny on a CPU. The README lists them. With
    --init-from the weights decide the size, and the recipe is one for fine-tuning."""
    n_layer: int | None = None
    """Blocks. Default: the preset's, as for the next four."""
    n_head: int | None = None
    """Attention heads; n_embd must be a multiple of this."""
    n_embd: int | None = None
    """Width of a token's vector."""
    block_size: int | None = None
    """Tokens that the model can attend to, and the length of a training window. With --init-from, a smaller number than
    the weights have crops their positions."""
    dropout: float | None = None
    """Probability of dropping an activation; helps where a small text is read many times."""
    init_from: str = "scratch"
    """Weights to start from: scratch, gpt2 ... gpt2-xl, owner/name on the hub, a run or a checkpoint folder."""
    lora_rank: int = 0
    """Freeze the weights of --init-from and let an adapter learn in their place (LoRA): two matrices of this rank
    beside each projection, 8 for example; 0 is off. Gradients, moments and checkpoints are the adapter's alone."""
    lora_alpha: float | None = None
    """What the adapter adds is multiplied by lora_alpha / lora_rank. Default: twice lora_rank."""
    lora_dropout: float = 0.0
    """Probability of dropping an input of the adapter."""
    lora_layers: int | None = None
    """The number of blocks with an adapter, the last ones. Default: all."""
    lora_targets: tuple[Literal["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"], ...] = tuple(TARGETS)
    """The projections of a block with an adapter."""
    quantize: Literal[8, 4] | None = None
    """Round the frozen matrices of the blocks to 8 or 4 bits per weight (QLoRA): less memory. Without it they are of
    type --dtype."""
    out: str | None = None
    """Run folder. Default: checkpoints/<data>-<preset>, or <data>-<last part of --init-from>."""
    resume: bool = False
    """Go on from the run's latest checkpoint, with the settings that the run was started with; without a checkpoint,
    start a new run."""
    fork: str | None = None
    """Begin a new run from a checkpoint of another one: RUN@STEP, RUN@best, RUN@latest or RUN. It reads on in the same
    order, with the same dropout, and has all settings of that run but those that are given, so every difference is
    theirs. Shape (but dropout), batch, optimizer, dtype and text stay. Default of --out: <RUN>-fork-<STEP>."""
    without: tuple[str, ...] = ()
    """Passages that the run does not learn from: FILE, FILE:7 or FILE:7-20, a file of the text or lines of it (of a
    .jsonl, documents; of a .parquet, rows). They are read in their place, but their loss has weight 0."""
    max_steps: int | None = None
    """Optimizer steps; the learning rate's cosine ends there. Default: as many as read the text the preset's number of
    times, at least 100 and at most the preset's number of steps. The next ones' default is the preset's."""
    minutes: float | None = None
    """Instead of max_steps: as many steps as fit into so many minutes, from the start of the command to its end with
    validation, test, samples and curve. A few are timed first. The number is then the run's: a resumed run keeps it."""
    batch_size: int | None = None
    """Windows per micro-batch. Default: the preset's; where memory is short, the same step is taken in smaller
    micro-batches or with --grad-checkpoint."""
    grad_accum_steps: int | None = None
    """Micro-batches per step, shared by the processes: a larger batch without its memory. Default: one per process."""
    optimizer: Literal["adamw", "muon"] | None = None
    """adamw, or muon: Muon for the hidden matrices and AdamW for the rest, which learns more per token."""
    learning_rate: float | None = None
    """Peak rate, reached after the warm-up."""
    min_lr: float | None = None
    """Rate of the last step. Default: a tenth of the peak."""
    warmup_steps: int | None = None
    """Steps of linear warm-up, while AdamW's moments are still rough. Default: the preset's, at most a tenth of
    max_steps."""
    weight_decay: float | None = None
    """Decoupled decay of matrices, per unit of learning rate; vectors do not decay."""
    beta2: float = 0.99
    """Decay of AdamW's mean of squared gradients; 0.95 to 0.99 suits runs of thousands of steps."""
    epsilon: float | None = None
    """Added to the root of AdamW's mean of squared gradients of wte. A large one keeps tokens that the text lacks,
    whose gradients are tiny, from being pushed away as fast as others learn. Default: the preset's."""
    grad_clip: float = 1.0
    """Largest global norm of a step's gradients; 0 is off. Keeps a bad batch from undoing good ones."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the forward and backward pass of the blocks; weights, moments, norms and the loss stay float32.
    Default: bfloat16 on a GPU, float32 on a CPU."""
    grad_checkpoint: bool = False
    """Recompute activations in the backward pass instead of keeping them: a third more time, much less memory."""
    seed: int = 1337
    """Everything random follows from it: weights, order of reading, dropout, samples."""
    eval_interval: int | None = None
    """Steps between two validation losses. Default: a quarter of max_steps, at least 25; but not more than those that
    read the text twice."""
    eval_tokens: int = 1_000_000
    """Tokens from the start of val and of test that are evaluated; 0 is all. A tenth of a large text takes hours."""
    log_interval: int = 10
    """Steps between two lines of the log."""
    sample_interval: int | None = None
    """Steps between two samples; 0 is off. Default: a quarter of max_steps, at least 25, and eval_interval at least."""
    save_interval: int | None = None
    """Steps between two checkpoints. Default: that of sample_interval; a new best one is always saved."""
    keep: int = 2
    """Number of newest checkpoints to keep, beside the best one."""
    patience: int | None = None
    """Stop after this many validations without a new best loss; 0 is off. Default: 5, with --init-from 3."""
    track: Literal["off", "tensorboard", "wandb", "trackio"] = "off"
    """Also hand the numbers of metrics.jsonl to this tracker. It can neither stop nor slow the run, and is a package
    to install."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute; auto takes the GPU where there is one."""
    wired_limit_gb: float = 0
    """GB of memory that macOS keeps resident for the GPU; 0 leaves it to macOS, which is safest."""
    compile: bool = True
    """Fuse the step with mx.compile; off only to debug."""
    plan: bool = False
    """Only show what memory and time this run would take, and which micro-batches fit; nothing is trained."""

    def __post_init__(self):
        for name in ("without", "lora_targets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON makes it a list
        for name in _AT_LEAST_0 + _AT_LEAST_1:
            value, least = getattr(self, name), int(name in _AT_LEAST_1)
            if value is not None and not value >= least:
                raise ValueError(f"{flag(name)} is {value}; it must be at least {least}")
        for name in ("learning_rate", "epsilon", "minutes", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{flag(name)} is {value}; it must be more than 0")
        if self.vocab is not None:
            tokenizer.size_of(self.vocab)
        if self.seed >= 2**32:
            raise ValueError(f"--seed is {self.seed}; it must be less than 2^32")
        for name in ("beta2", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{flag(name)} is {getattr(self, name)}; it must be at least 0 and less than 1")
        if not (self.resume or self.fork):  # which may have an adapter's other settings
            self._check_adapter()

    def _check_adapter(self) -> None:
        if not self.lora_rank:
            fields = {field.name: field.default for field in dataclasses.fields(self)}
            for name in (*_OF_ADAPTER, "quantize"):
                if (value := getattr(self, name)) != fields[name]:
                    raise ValueError(
                        f"{flag(name)} is {told(value)}, but there is no adapter: --lora-rank gives its rank"
                    )
        elif not self.fine_tunes:
            raise ValueError(f"--lora-rank is {self.lora_rank}, but there is no base: --init-from names it")
        elif self.optimizer == "muon":
            raise ValueError("--optimizer is muon; an adapter learns by adamw")
        elif not self.lora_targets:
            raise ValueError(f"--lora-targets is empty; allowed: {', '.join(TARGETS)}")

    @property
    def fine_tunes(self) -> bool:
        """Whether the run starts from trained weights."""
        return self.init_from != "scratch"

    def model_name(self, on_gpu: bool = False) -> str:
        """The name of the weights to start from, or of the preset."""
        return Path(self.init_from).name if self.fine_tunes else self._preset(on_gpu)

    def _preset(self, on_gpu: bool) -> str:
        return self.preset if self.preset != "auto" else "baby" if on_gpu else "tiny"

    def resolved(
        self, on_gpu: bool, init: GPT2Config | None = None, processes: int = 1, tokens: int | None = None
    ) -> "TrainConfig":
        """The same settings with a value for each None, by preset, device and the number of tokens to train on.

        Without `tokens` the text is endless. `init`, the shape of the weights to start from, replaces the preset's
        shape. Raises a ValueError where a flag asks for another shape than `init`, or where the processes cannot share
        the micro-batches of a step evenly.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        preset, vocab = self._preset(on_gpu), self.vocab or tokenizer.NAME
        shape = {name: getattr(init or PRESETS[preset], name) for name in SHAPE}
        if init:
            self._check_fits(init)
        others = {"dtype": "bfloat16" if on_gpu else "float32", "grad_accum_steps": processes, "vocab": vocab}
        fine = recipes.adapter if self.lora_rank else recipes.fine_tuning
        recipe = fine(init) if init else recipes.from_scratch(preset, vocab == tokenizer.NAME)
        if self.lora_rank:
            others |= {"lora_alpha": 2.0 * self.lora_rank, "lora_layers": shape["n_layer"]}
        full = others | shape | recipe | given
        full |= recipes.schedule(full, given, tokens or math.inf) | given
        if not self.fine_tunes:
            full["preset"] = preset
        resolved = TrainConfig(**{name: value for name, value in full.items() if name not in recipes.ONLY_HERE})
        resolved._check_adapter()
        if resolved.grad_accum_steps % processes:
            raise ValueError(
                f"--grad-accum-steps is {resolved.grad_accum_steps}; it must be a multiple of the number of processes,"
                f" which is {processes}"
            )
        resolved.model_config()  # raises where the shape is impossible
        return resolved

    def _check_fits(self, init: GPT2Config) -> None:
        if self.preset != "auto":
            raise ValueError(
                f"--preset is {self.preset}, but --init-from {self.init_from} tells the size: leave one out"
            )
        for name in ("n_layer", "n_head", "n_embd", "block_size"):
            asked, there = getattr(self, name), getattr(init, name)
            if asked not in (None, there) and not (name == "block_size" and asked < there):
                at_most = " at most" if name == "block_size" else ""
                raise ValueError(f"{flag(name)} is {asked}, but {self.init_from} has {there}{at_most}")
        if (self.lora_layers or 0) > init.n_layer:
            raise ValueError(f"--lora-layers is {self.lora_layers}, but {self.init_from} has {init.n_layer} blocks")
        if init.vocab_size < (size := tokenizer.size_of(self.vocab or tokenizer.NAME)):
            raise ValueError(f"{self.init_from} knows {init.vocab_size} tokens, fewer than its vocabulary's {size}")

    def model_config(self) -> GPT2Config:
        """The shape of the model; the settings must be resolved."""
        shape = {name: getattr(self, name) for name in SHAPE}
        return GPT2Config(**shape, vocab_size=tokenizer.size_of(self.vocab))


SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "dropout")
_AT_LEAST_0 = ("weight_decay", "grad_clip", "min_lr", "seed", "sample_interval", "patience", "warmup_steps")
_AT_LEAST_0 += ("eval_tokens", "wired_limit_gb", "lora_rank")
_OF_ADAPTER = ("lora_alpha", "lora_dropout", "lora_layers", "lora_targets")
_AT_LEAST_1 = ("max_steps", "batch_size", "grad_accum_steps", "eval_interval", "log_interval", "save_interval", "keep")
_AT_LEAST_1 += ("lora_layers",)


def flag(name: str) -> str:
    """The flag of a field: "--n-layer" of "n_layer"."""
    return "--" + name.replace("_", "-")
