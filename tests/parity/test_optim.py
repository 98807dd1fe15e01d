"""One optimizer step from the same weights, batch and settings as PyTorch."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from gpt2_mlx import checkpoint, layout
from gpt2_mlx.training import step
from gpt2_mlx.training.config import TrainConfig

from .conftest import SHAPES

torch = pytest.importorskip("torch")

RATE, DECAY, BETA2 = 3e-4, 0.1, 0.99


@pytest.mark.parametrize("grad_clip", [0.5, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_adamw_step_moves_parameters_as_pytorch_moves_them(foreign, shape, grad_clip):
    theirs, folder = foreign(**SHAPES[shape])
    ours = checkpoint.load(folder)
    block_size, n_embd = ours.config.block_size, ours.config.n_embd
    windows = np.random.RandomState(1).randint(0, ours.config.vocab_size, (4, block_size + 1))
    tokens, targets = windows[:, :-1], windows[:, 1:]

    fields = {name: getattr(ours.config, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}
    fields |= {"optimizer": "adamw", "weight_decay": DECAY, "beta2": BETA2, "grad_clip": grad_clip, "batch_size": 4}
    fields["epsilon"] = 1e-8
    take_step = step.build(TrainConfig(**fields).resolved(on_gpu=False), ours)
    loss, norm, _ = take_step([(mx.array(tokens), mx.array(targets))], RATE)
    mx.eval(loss, norm, ours.parameters())

    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, BETA2))
    out = theirs(torch.tensor(tokens)).logits  # dropout is off: it is in eval mode
    expected_loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), torch.tensor(targets).flatten())
    expected_loss.backward()
    expected_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), grad_clip or float("inf"))
    optimizer.step()

    assert abs(loss.item() - expected_loss.item()) < 1e-4
    assert abs(norm.item() / expected_norm.item() - 1) < 1e-3  # float32 sums of millions of squares
    moved = dict(tree_flatten(ours.parameters()))
    expected = layout.parameters({n: mx.array(p.detach().numpy()) for n, p in theirs.named_parameters()}, ours)
    for name, p in expected.items():
        difference = np.abs(np.array(moved[name]) - np.array(p))
        if name.endswith("c_attn.bias"):  # a key's bias shifts all scores alike: its gradient is 0 but for rounding,
            difference = np.delete(difference, np.s_[n_embd : 2 * n_embd])  # of which AdamW makes a step of any size
        assert difference.max() < 1e-5, name
