"""How far a run has come."""

import math
from dataclasses import dataclass

from . import precision


@dataclass
class Progress:
    """All that a resumed run needs beside weights and moments."""

    step: int = 0  # optimizer steps done
    best_loss: float | None = None  # the least validation loss, in nats per token
    best_step: int | None = None
    evals_since_best: int = 0
    skipped: int = 0  # steps whose gradients were not finite
    elapsed_s: float = 0.0
    loss_scale: float = 1.0
    steps_at_scale: int = 0  # in a row without an overflow

    def count_step(self, taken: bool, dtype: str) -> None:
        """Count a step that is done; where it was not `taken`, its gradients were not finite."""
        self.step += 1
        self.skipped += not taken
        self.loss_scale, self.steps_at_scale = precision.next_scale(dtype, self.loss_scale, self.steps_at_scale, taken)

    def count_validation(self, loss: float) -> bool:
        """Count a validation loss and return whether it is the best so far; one that is not finite never is."""
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_step, self.evals_since_best = loss, self.step, 0
            return True
        self.evals_since_best += 1
        return False
