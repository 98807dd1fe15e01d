"""What a run tells: events to metrics.jsonl, lines to the console, a progress bar where there is a terminal."""

import math
from pathlib import Path

from tqdm import tqdm

from .. import device
from ..metrics import MetricsLog


class Report:
    """Tells of one call of `Trainer.fit`; close it when that ends.

    The first step is logged too: its loss should be about ln V.

    Args:
        run: the run folder.
        step: the steps done before.
        max_steps: the steps of the whole run.
        log_interval: steps between two `train` events.
    """

    def __init__(self, run: Path, step: int, max_steps: int, log_interval: int):
        self._log = MetricsLog(run / "metrics.jsonl")
        self._max_steps, self._log_interval = max_steps, log_interval
        # disable=None: no bar where stderr is no terminal
        self._bar = tqdm(initial=step, total=max_steps, unit="step", disable=None, dynamic_ncols=True, smoothing=0.05)
        self._tokens, self._seconds = 0, 0.0  # since the last train event

    def step(
        self, step: int, loss: float, rate: float, norm: float, taken: bool, tokens: int, seconds: float, elapsed: float
    ) -> None:
        """One optimizer step is done: `tokens` read in `seconds`, `elapsed` since the run began."""
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
        self._bar.update()
        if not taken:
            self._log.write("skip", step, loss=loss, grad_norm=norm)
            self.say(f"step {step}: skipped, its gradients are not finite (loss {loss})")
        if step == 1 or step % self._log_interval == 0 or step == self._max_steps:
            speed = self._tokens / self._seconds
            self._log.write(
                "train",
                step,
                loss=loss,
                lr=rate,
                grad_norm=norm,
                tokens_per_s=round(speed, 1),
                peak_memory_gb=round(device.peak_memory_gb(), 3),
                elapsed_s=round(elapsed, 3),
            )
            self._bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s")
            if self._bar.disable:
                left = (self._max_steps - step) * self._seconds / self._tokens * tokens
                self.say(
                    f"step {step:>6}/{self._max_steps} | loss {loss:.4f} | lr {rate:.2e} | norm {norm:.2f}"
                    f" | {speed:,.0f} tokens/s | {tqdm.format_interval(left)} left"
                )
            self._tokens, self._seconds = 0, 0.0

    def validation(self, step: int, loss: float, is_best: bool) -> None:
        self._log.write("eval", step, val_loss=loss)
        self.say(f"step {step:>6}: val loss {loss:.4f}{' (best so far)' if is_best else ''}")

    def test(self, step: int, loss: float) -> None:
        """`step` is the one whose weights were tested."""
        self._log.write("test", step, loss=loss, perplexity=math.exp(min(loss, 700)))
        self.say(f"test loss {loss:.4f}, perplexity {math.exp(min(loss, 700)):.1f} (weights of step {step})")

    def sample(self, step: int, prompt: str, text: str) -> None:
        self._log.write("sample", step, prompt=prompt, text=text)
        self.say(f"--- sample at step {step}\n{text}\n---")

    def saved(self, step: int, folder: Path) -> None:
        self._log.write("save", step, path=folder.name)

    def end(self, step: int, reason: str, elapsed: float) -> None:
        self._log.write("end", step, reason=reason, elapsed_s=round(elapsed, 3))

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.write(line)

    def close(self) -> None:
        self._bar.close()
        self._log.close()
