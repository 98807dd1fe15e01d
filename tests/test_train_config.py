import pytest

from gpt2_mlx.config import PRESETS, GPT2Config
from gpt2_mlx.training.config import DEFAULTS, TrainConfig


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_fine_tuning_is_short_and_gentle_and_stops_early(name):
    config = TrainConfig(init_from=name).resolved(on_gpu=True, init=PRESETS[name])
    assert config.learning_rate == DEFAULTS[name]["learning_rate"] / 10 <= 6e-5
    assert config.batch_size == DEFAULTS[name]["batch_size"]
    assert config.optimizer == "adamw"
    assert config.max_steps == 300 and config.warmup_steps == 20
    assert config.patience * config.eval_interval < config.max_steps
    assert config.model_config() == PRESETS[name]
    assert config.model_name() == name


def test_what_is_given_is_taken():
    given = {
        "learning_rate": 1e-3,
        "warmup_steps": 7,
        "optimizer": "muon",
        "patience": 0,
        "max_steps": 9,
        "dropout": 0.5,
    }
    config = TrainConfig(init_from="gpt2", block_size=256, **given).resolved(on_gpu=False, init=PRESETS["gpt2"])
    assert {name: getattr(config, name) for name in given} == given
    assert config.block_size == 256


def test_dropout_and_an_unknown_size_follow_the_weights():
    distilled = GPT2Config(n_layer=6, n_head=12, n_embd=768, dropout=0.1)
    config = TrainConfig(init_from="owner/distilled").resolved(on_gpu=False, init=distilled)
    assert (config.n_layer, config.dropout) == (6, 0.1)
    assert config.learning_rate == DEFAULTS["gpt2"]["learning_rate"] / 10
    assert config.model_name() == "distilled"


def test_from_scratch_there_is_no_patience():
    assert TrainConfig().resolved(on_gpu=False).patience == 0
    assert TrainConfig().model_name(on_gpu=True) == "baby"


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    with pytest.raises(ValueError, match="x knows 61 tokens, fewer than GPT-2's 50257"):
        TrainConfig(init_from="x").resolved(on_gpu=False, init=GPT2Config(vocab_size=61))
