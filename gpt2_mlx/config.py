"""The shape of a GPT-2: `GPT2Config` and the presets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPT2Config:
    """The architecture of a GPT-2. Raises a ValueError where a field is out of range."""

    block_size: int = 1024  # the largest number of tokens that the model can attend to
    vocab_size: int = 50257  # 50,000 merges, 256 bytes, <|endoftext|>
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0  # probability; used only where the model is called with a key

    def __post_init__(self):
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**24:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1 and less than 2^24")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}; it must be a multiple of n_head, which is {self.n_head}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}; it must be at least 0 and less than 1")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def n_params(self) -> int:
        """The number of parameters; the tied head counts once."""
        embeddings, final_norm = (self.vocab_size + self.block_size) * self.n_embd, 2 * self.n_embd
        return embeddings + self.n_layer * (12 * self.n_embd**2 + 13 * self.n_embd) + final_norm


# tiny trains on a laptop's CPU in minutes; baby has the size that nanoGPT uses for Shakespeare; the others are those of
# table 2 of Radford et al. 2019, with the sizes of the weights that OpenAI published.
PRESETS = {
    "tiny": GPT2Config(block_size=128, n_layer=4, n_head=4, n_embd=128),
    "baby": GPT2Config(block_size=256, n_layer=6, n_head=6, n_embd=384),
    "gpt2": GPT2Config(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
}
