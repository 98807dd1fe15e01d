"""A GPT-2 in PyTorch in nanoGPT's manner: fused attention, fused AdamW, one loss over all logits.

Shapes: B batch, T tokens, C n_embd, H n_head, D head_dim, V vocab_size.
"""

import contextlib
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import SHAPES, VOCAB_SIZE, random_windows, rounds_of


class Attention(nn.Module):
    def __init__(self, n_embd: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.attn = Attention(n_embd, n_head)
        self.c_fc, self.c_proj = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, preset: str, block_size: int, vocab_size: int = VOCAB_SIZE):
        super().__init__()
        n_layer, n_head, n_embd = SHAPES[preset]
        self.wte, self.wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(block_size, n_embd)
        self.h = nn.Sequential(*[Block(n_embd, n_head) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self.head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """The loss of (B, T) tokens and targets."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))  # (B, T, C)
        logits = self.head(self.ln_f(self.h(x)))  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


class Training:
    """A model, its optimizer and the step that nanoGPT takes."""

    def __init__(
        self,
        preset: str,
        block_size: int,
        rate: float,
        decay: float,
        compile: bool,
        dtype: str,
        device: str,
        vocab_size: int = VOCAB_SIZE,
    ):
        self.device = torch_device(device)
        torch.manual_seed(1337)
        torch.set_float32_matmul_precision("high")
        if self.device == "cuda":
            vocab_size = -(-vocab_size // 64) * 64  # tensor cores want a multiple of 64
        self.model = GPT2(preset, block_size, vocab_size).to(self.device)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True)
        self.loss = torch.compile(self.model) if compile else self.model
        self.autocast = contextlib.nullcontext()
        if dtype != "float32":
            self.autocast = torch.autocast(self.device, getattr(torch, dtype))

    def step(self, batch: np.ndarray, rate: float) -> float:
        """One step on (B, T + 1) tokens; its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tokens = torch.from_numpy(batch).to(self.device, non_blocking=True)
        with self.autocast:
            loss = self.loss(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()  # waits for the device


def torch_device(name: str) -> str:
    if name == "cpu":
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def peak(device: str) -> dict:
    """The most memory of a GPU's arrays in GB: on a Mac what the allocator holds, for it gives little back."""
    if device == "cuda":
        return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {"peak_gb": torch.mps.driver_allocated_memory() / 1e9} if device == "mps" else {}


def train(
    preset: str, batch_size: int, block_size: int, compile: bool, dtype: str, device: str, steps: int
) -> Callable[[], dict]:
    training = Training(preset, block_size, 1e-4, 0.1, compile, dtype, device)
    batches = random_windows(batch_size, block_size)
    measure = rounds_of(lambda: training.step(next(batches), 1e-4), steps, batch_size * block_size)
    return lambda: measure() | peak(training.device)
