import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx.config import PRESETS, GPT2Config
from gpt2_mlx.training.config import TrainConfig
from gpt2_mlx.training.recipes import OWN_VOCABULARY, RECIPES, fine_tuning, from_scratch


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_fine_tuning_is_short_and_gentle_and_stops_early(name):
    config = TrainConfig(init_from=name).resolved(on_gpu=True, init=PRESETS[name])
    assert config.learning_rate == RECIPES[name]["learning_rate"] / 10 <= 6e-5
    assert config.batch_size == RECIPES[name]["batch_size"]
    assert config.optimizer == "adamw"
    assert config.max_steps == 300 and config.warmup_steps == 20
    assert config.patience * config.eval_interval < config.max_steps
    assert config.model_config() == PRESETS[name]
    assert config.model_name() == name


def test_what_is_given_is_taken():
    flags = {
        "learning_rate": 1e-3,
        "warmup_steps": 7,
        "optimizer": "muon",
        "patience": 0,
        "max_steps": 9,
        "dropout": 0.5,
    }
    config = TrainConfig(init_from="gpt2", block_size=256, **flags).resolved(on_gpu=False, init=PRESETS["gpt2"])
    assert {name: getattr(config, name) for name in flags} == flags
    assert config.block_size == 256


def test_dropout_and_an_unknown_size_follow_the_weights():
    distilled = GPT2Config(n_layer=6, n_head=12, n_embd=768, dropout=0.1)
    config = TrainConfig(init_from="owner/distilled").resolved(on_gpu=False, init=distilled)
    assert (config.n_layer, config.dropout) == (6, 0.1)
    assert config.learning_rate == RECIPES["gpt2"]["learning_rate"] / 10
    assert config.model_name() == "distilled"


def test_auto_is_baby_on_a_gpu():
    assert TrainConfig().model_name(on_gpu=True) == "baby"


@given(tokens=st.integers(1, 10**8), preset=st.sampled_from([*RECIPES]), init=st.booleans(), own=st.booleans())
def test_steps_follow_from_the_text_and_the_best_of_them_is_found(tokens, preset, init, own):
    vocab = {"vocab": "1024"} if own and not init else {}
    config = TrainConfig(**({"init_from": preset} if init else {"preset": preset}), **vocab)
    config = config.resolved(on_gpu=True, init=PRESETS[preset] if init else None, tokens=tokens)
    recipe = fine_tuning(PRESETS[preset]) if init else from_scratch(preset, gpt2_vocabulary=not vocab)
    per_step = config.batch_size * config.grad_accum_steps * config.block_size
    read = config.max_steps * per_step / tokens
    assert read <= recipe["passes"] or config.max_steps == 100  # a text is not read again and again
    assert read > recipe["passes"] - per_step / tokens or config.max_steps == recipe["max_steps"]
    assert config.eval_interval * per_step <= 2 * tokens or config.eval_interval == 1
    assert config.eval_interval <= config.max_steps / 4 or config.max_steps == 100
    assert config.patience > 0  # nobody waits for a loss that has risen since long
    assert config.warmup_steps <= config.max_steps / 10
    assert config.save_interval == config.sample_interval >= max(25, config.eval_interval)


def test_given_steps_are_validated_at_least_at_every_second_pass():
    config = TrainConfig(preset="tiny", max_steps=5000, learning_rate=2e-3).resolved(on_gpu=False, tokens=10240)
    assert (config.max_steps, config.eval_interval, config.save_interval) == (5000, 20, 1250)
    assert config.min_lr == 2e-4
    flags = {
        "eval_interval": 700,
        "sample_interval": 0,
        "save_interval": 3,
        "patience": 0,
        "min_lr": 0,
        "warmup_steps": 0,
    }
    config = TrainConfig(preset="tiny", **flags).resolved(on_gpu=False, tokens=10240)
    assert {name: getattr(config, name) for name in flags} == flags


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    with pytest.raises(ValueError, match="x knows 61 tokens, fewer than its vocabulary's 50257"):
        TrainConfig(init_from="x").resolved(on_gpu=False, init=GPT2Config(vocab_size=61))


@pytest.mark.parametrize("vocab", ["bytes", "1024"])
@pytest.mark.parametrize("preset", OWN_VOCABULARY)
def test_a_small_vocabulary_has_a_recipe_of_its_own(preset, vocab):
    config, usual = (TrainConfig(preset=preset, vocab=name).resolved(on_gpu=False) for name in (vocab, "gpt2"))
    for name in ("n_embd", "dropout", "batch_size", "learning_rate"):
        assert getattr(config, name) == OWN_VOCABULARY[preset].get(name, getattr(usual, name))
    assert config.n_embd // config.n_head == 64  # a size of heads that Metal's fused attention has a kernel for
    assert config.dropout > usual.dropout
    assert TrainConfig(preset=preset, vocab=vocab, n_embd=96).resolved(on_gpu=False).n_embd == 96
