"""A training step as MLX's documentation writes it, with mlx_lm's GPT-2 and the same OpenBLAS as ours."""

from collections.abc import Callable

from . import SHAPES, VOCAB_SIZE, openblas, random_windows, rounds_of  # noqa: F401  openblas comes before mlx

import mlx.core as mx  # isort: skip
import mlx.nn as nn
import mlx.optimizers as optim
from mlx_lm.models.gpt2 import Model, ModelArgs


def train(preset: str, batch_size: int, block_size: int, dtype: str, device: str, steps: int) -> Callable[[], dict]:
    if device == "cpu":
        mx.set_default_device(mx.cpu)
    n_layer, n_head, n_embd = SHAPES[preset]
    model = Model(ModelArgs("gpt2", block_size, n_embd, n_head, n_layer, block_size, 1e-5, VOCAB_SIZE))
    model.set_dtype(getattr(mx, dtype))
    optimizer = optim.AdamW(1e-4, betas=[0.9, 0.99], weight_decay=0.1, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]
    mx.eval(state)

    def loss(tokens: mx.array, targets: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(tokens).astype(mx.float32), targets, reduction="mean")

    loss_and_gradients = nn.value_and_grad(model, loss)

    def update(tokens: mx.array, targets: mx.array) -> mx.array:
        value, gradients = loss_and_gradients(tokens, targets)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return value

    update = mx.compile(update, inputs=state, outputs=state)
    batches = random_windows(batch_size, block_size)

    def step() -> None:
        batch = mx.array(next(batches).astype("int32"))
        mx.eval(update(batch[:, :-1], batch[:, 1:]), state)

    measure = rounds_of(step, steps, batch_size * block_size)
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    return lambda: measure() | ({"peak_gb": mx.get_peak_memory() / 1e9} if on_gpu else {})
