"""What a run reports: events in metrics.jsonl, lines on the console, a progress bar where there is a terminal."""

import math
import os
import sys
from pathlib import Path

from tqdm import tqdm

from .. import device, metrics
from . import ranks
from .config import TrainConfig
from .evaluation import Score
from .progress import Progress


class Report:
    """Reports one call of `Trainer.fit`, which begins after `step` steps. Of several processes only the first reports.

    The loss of a train event is the mean since the train event before it. The first step has its own event; its loss
    should be about ln V.
    """

    def __init__(self, run: Path, step: int, config: TrainConfig):
        self._problem: str | None = None  # with the log
        self._log = run / "metrics.jsonl" if ranks.is_first() else Path(os.devnull)
        self._config = config
        hidden = None if ranks.is_first() else True  # None: no bar where stderr is no terminal
        self._bar = tqdm(initial=step, total=config.max_steps, unit="step", disable=hidden, dynamic_ncols=True)
        self._steps, self._seconds, self._losses = 0, 0.0, []  # since the last train event

    def step(self, progress: Progress, loss: float, lr: float, grad_norm: float, taken: bool, seconds: float) -> None:
        """Report a step that took `seconds`; `progress` has counted it."""
        self._steps, self._seconds = self._steps + 1, self._seconds + seconds
        if not (taken and math.isnan(loss)):  # there were targets that count
            self._losses.append(loss)
        self._bar.update()
        step, scale = progress.step, progress.loss_scale
        if not taken:
            self._write("skip", step, loss=loss, grad_norm=grad_norm, loss_scale=scale)
            self.say(f"step {step}: skipped, its gradients are not finite (loss {loss}, loss scale now {scale:g})")
        if step == 1 or step % self._config.log_interval == 0 or step == self._config.max_steps:
            self._train_event(step, lr, grad_norm, progress.elapsed_s)

    def _train_event(self, step: int, lr: float, grad_norm: float, elapsed_s: float) -> None:
        config, seconds = self._config, self._seconds / self._steps
        loss = sum(self._losses) / len(self._losses) if self._losses else math.nan
        speed = config.grad_accum_steps * config.batch_size * config.block_size / seconds
        numbers = {"loss": loss, "lr": lr, "grad_norm": grad_norm, "elapsed_s": round(elapsed_s, 3)}
        memory = round(device.peak_memory_gb(), 3)
        self._write("train", step, **numbers, tokens_per_s=round(speed, 1), peak_memory_gb=memory)
        self._bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s")
        if self._bar.disable:
            left = tqdm.format_interval((config.max_steps - step) * seconds)
            self.say(
                f"step {step:>6}/{config.max_steps} | loss {loss:.4f} | lr {lr:.2e}"
                f" | norm {grad_norm:.2f} | {speed:,.0f} tokens/s | {left} left"
            )
        self._steps, self._seconds, self._losses = 0, 0.0, []

    def validation(self, step: int, score: Score, is_best: bool) -> None:
        self._write("eval", step, val_loss=score.loss, bits_per_byte=score.bits_per_byte)
        best = " (best so far)" * is_best
        self.say(f"step {step:>6}: val loss {score.loss:.4f}, {score.bits_per_byte:.4f} bits per byte{best}")

    def test(self, step: int, score: Score) -> None:
        """Report the score of the weights after `step` on the test split."""
        loss, perplexity, bits = score.loss, score.perplexity, score.bits_per_byte
        self._write("test", step, loss=loss, perplexity=perplexity, bits_per_byte=bits)
        told = f"test loss {loss:.4f}, perplexity {perplexity:.1f}, {bits:.4f} bits per byte"
        self.say(f"{told} (weights of step {step})")

    def sample(self, step: int, prompt: str, text: str) -> None:
        self._write("sample", step, prompt=prompt, text=text)
        self.say(f"--- sample at step {step}\n{text}\n---")

    def end(self, step: int, reason: str, elapsed: float) -> None:
        self._write("end", step, reason=reason, elapsed_s=round(elapsed, 3))

    def _write(self, event: str, step: int, **fields) -> None:
        problem = metrics.write(self._log, event, step, **fields)
        if problem and problem != self._problem:
            self.say(f"NOTE: {problem}; the training goes on")
        self._problem = problem

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.write(line)
        sys.stdout.flush()  # so that a pipe gets the line at once, too

    def close(self) -> None:
        self._bar.close()
