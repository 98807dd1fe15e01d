"""Train a GPT-2 on a text: `python train.py`; `--help` shows every flag."""

import dataclasses
import shlex
import signal
from pathlib import Path

from gpt2_mlx import cli, device, plot
from gpt2_mlx.training import plan, ranks, run, text
from gpt2_mlx.training.config import TrainConfig
from gpt2_mlx.training.trainer import Trainer


@ranks.together()
def main() -> None:
    flags = cli.parse(TrainConfig)
    on_gpu = device.select(flags.device) == "gpu"
    source = None if flags.out else text.find(flags.data)
    folder = Path(flags.out or f"checkpoints/{source.name}-{flags.model_name(on_gpu)}")
    saved = run.saved_settings(folder) if flags.resume else None
    if saved:
        flags = cli.parse(TrainConfig, default=saved)  # the flags given now override those of then
        on_gpu = device.select(flags.device) == "gpu"
    elif flags.resume:
        print(f"there is no run in {folder} to resume: beginning one")
    source = source or text.find(flags.data)
    if source.note:
        print(f"NOTE: {source.note}")
        flags = dataclasses.replace(flags, data=source.name)
    init, shape = run.find_init(flags, folder)
    config = flags.resolved(on_gpu, shape, ranks.size())
    if saved:
        run.check_unchanged(config, saved)
    config = plan.fit(config, given=bool(saved or flags.batch_size), processes=ranks.size())
    device.wire(config.wired_limit_gb)
    if config.plan:
        print(plan.report(config, ranks.size()))
        return
    trainer = run.open_run(config, source, folder, init)
    greet(trainer, source)
    stop_on_signals(trainer)
    device.keep_awake()
    reason = trainer.fit()
    if trainer.progress.step and ranks.is_first():
        plot.draw([folder], folder / "loss.png")
    if reason in signal.Signals.__members__:
        command = f"python train.py --resume --out {shlex.quote(str(folder))}"
        print(f"stopped by {reason} at step {trainer.progress.step}: `{command}` goes on")
        raise SystemExit(128 + signal.Signals[reason])
    print(f"the run is in {folder}: its losses in metrics.jsonl and loss.png, its model in {folder / 'best'}")


def greet(trainer: Trainer, source: text.Source) -> None:
    config, tokens = trainer.config, {name: len(trainer.dataset.split(name)) for name in ("train", "val", "test")}
    print(f"device: {device.description()}" + f", {ranks.size()} processes" * (ranks.size() > 1))
    print(f"text:   {source.name}, {' + '.join(f'{n:,} {name}' for name, n in tokens.items())} tokens")
    if 0 < config.eval_tokens < max(tokens["val"], tokens["test"]):
        print(f"        the losses of val and test are over their first {config.eval_tokens:,} (--eval-tokens)")
    print(
        f"model:  {config.model_name()}, {trainer.model.n_params / 1e6:.1f}M parameters"
        f" ({config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, {config.block_size} tokens)"
    )
    began = f"from step {trainer.progress.step} " if trainer.progress.step else ""
    print(f"run:    {trainer.run}, {began}to step {config.max_steps}, {config.optimizer}, {config.dtype}", flush=True)


def stop_on_signals(trainer: Trainer) -> None:
    """Have Ctrl-C and SIGTERM end the run after the step in hand; the same signal again ends it at once."""

    def stop(number: int, _) -> None:
        trainer.stop_reason = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


if __name__ == "__main__":
    cli.run(main)
