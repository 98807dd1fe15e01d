"""gpt2-mlx train: train a GPT-2 on a text."""

import functools
import shlex
import signal

from .. import cli, device, inventory, plot
from ..corpus.dataset import SPLITS
from ..corpus.source import Source
from ..training import plan, ranks, run, track
from ..training.config import TrainConfig
from ..training.settle import settle
from ..training.trainer import Trainer


@ranks.together()
def main() -> None:
    settled = settle(cli.parse(TrainConfig), functools.partial(cli.parse, TrainConfig))
    if settled.config.plan:
        print(plan.report(settled.config))
        return
    with run.opened(settled) as trainer, track.following(trainer.config, trainer.run, trainer.progress.step):
        greet(trainer, settled.source)
        stop_on_signals(trainer)
        device.keep_awake()
        end(trainer, trainer.fit())


def end(trainer: Trainer, reason: str) -> None:
    """Draw the curve and say how to go on. Raises a SystemExit after a signal."""
    folder, step = trainer.run, trainer.progress.step
    if step and ranks.is_first():
        plot.draw([folder], folder / "loss.png")
    if reason in signal.Signals.__members__:
        command = f"{cli.command('train')} --resume --out {shlex.quote(str(folder))}"
        print(f"stopped by {reason} at step {step}: `{command}` goes on")
        raise SystemExit(128 + signal.Signals[reason])
    print(f"the run is in {folder}: its losses in metrics.jsonl and loss.png, its model in {folder / 'best'}")


def greet(trainer: Trainer, source: Source) -> None:
    config, tokens = trainer.config, {name: len(trainer.dataset.split(name)) for name in SPLITS}
    print(f"device: {inventory.description()}" + f", {ranks.size()} processes" * (ranks.size() > 1))
    print(f"text:   {source.name}, {trainer.dataset.told}")
    if 0 < config.eval_tokens < max(tokens["val"], tokens["test"]):
        print(f"        the losses of val and test are over their first {config.eval_tokens:,} (--eval-tokens)")
    if config.without:
        n = trainer.dataset.n_ignored
        print(f"        without {' '.join(config.without)}: {n:,} of the train tokens have no weight in the loss")
    print(
        f"model:  {config.model_name()}, {trainer.model.config.n_params / 1e6:.1f}M parameters"
        f" ({config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, {config.block_size} tokens)"
    )
    if lora := trainer.model.lora:
        base = f"{lora.quantize} bits" if lora.quantize else lora.dtype
        print(f"        frozen, its blocks in {base}; {trainer.model.n_trained:,} parameters of an adapter learn")
    began = f"from step {trainer.progress.step} " if trainer.progress.step else ""
    print(f"run:    {trainer.run}, {began}to step {config.max_steps}, {config.optimizer}, {config.dtype}", flush=True)


def stop_on_signals(trainer: Trainer) -> None:
    """Let Ctrl-C and SIGTERM end the run after the current step; the same signal again ends it at once."""

    def stop(number: int, _) -> None:
        trainer.stop_reason = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
