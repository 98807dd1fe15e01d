"""What the served run tells of itself."""

import functools
import shutil

import pytest
from served import CONFIG, add_checkpoint, make_run

from gpt2_mlx import checkpoint, metrics
from gpt2_mlx.config import PRESETS
from gpt2_mlx.model import GPT2
from gpt2_mlx.serving.answers import Checkpoint
from gpt2_mlx.serving.served_run import ServedRun


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "verse")


def test_the_card_of_a_run_in_training(folder):
    card = ServedRun(folder, "mine").card((folder / "best").resolve(), watch=False, unready=None)
    assert card.model == "mine" and card.data == "verse"
    assert card.n_params == GPT2(CONFIG).n_params and card.block_size == 64 and card.preset is None
    assert (card.step, card.max_steps, card.ended) == (4, 8, None)
    assert card.test_loss is card.test_bits_per_byte is None
    second = Checkpoint(name="step-00000004", step=4, val_loss=10.5, bits_per_byte=3.5)
    assert card.checkpoint == second
    first = Checkpoint(name="step-00000002", step=2, val_loss=10.75, bits_per_byte=None)  # of an earlier version
    assert card.checkpoints == [first, second]


def test_the_card_follows_the_training(folder):
    run = ServedRun(folder, "mine")
    run.card(folder / "step-00000004", watch=False, unready=None)
    log = functools.partial(metrics.write, folder / "metrics.jsonl")
    log("eval", 8, val_loss=9.0)
    log("test", 8, loss=9.5, bits_per_byte=3.25)
    log("end", 8, reason="max_steps")
    last = add_checkpoint(folder, 8, "latest", "best")
    card = run.card(last, watch=False, unready=None)
    assert (card.step, card.ended, card.test_loss, card.test_bits_per_byte) == (8, "max_steps", 9.5, 3.25)
    assert card.checkpoint.val_loss == 9.0 and len(card.checkpoints) == 3


def test_a_checkpoint_in_a_run_tells_of_the_run_and_one_by_itself_of_itself(folder, tmp_path):
    inside = ServedRun(folder / "step-00000002", "mine")
    assert inside.card(folder / "step-00000004", watch=False, unready=None).data == "verse"
    assert len(inside.checkpoints()) == 2
    shutil.copytree(folder / "step-00000002", tmp_path / "elsewhere" / "mine")
    by_itself = ServedRun(tmp_path / "elsewhere" / "mine", "mine")
    card = by_itself.card(by_itself.checkpoints()["mine"], watch=False, unready=None)
    assert (card.model, card.data, card.step) == ("mine", None, None)
    assert card.checkpoints == [Checkpoint(name="mine", step=None, val_loss=None, bits_per_byte=None)]
    with pytest.raises(ValueError, match="no metrics.jsonl"):
        by_itself.curve("light")


def test_a_log_that_cannot_be_read_costs_the_numbers_only(folder):
    (folder / "metrics.jsonl").write_text("nonsense\n{}\n")
    card = ServedRun(folder, "mine").card(folder / "step-00000004", watch=False, unready=None)
    assert card.step is None and len(card.checkpoints) == 2


def test_the_curve_grows_with_the_run_and_is_drawn_once_for_each_state(folder, monkeypatch):
    run = ServedRun(folder, "mine")
    light, dark = run.curve("light"), run.curve("dark")
    assert b"<svg" in light and light != dark
    assert b"#0b6e63" in light and b"#5cc9b9" in dark
    assert run.curve("light") is light
    log = functools.partial(metrics.write, folder / "metrics.jsonl")
    log("train", 5, loss=3.0, elapsed_s=5.0)
    assert run.curve("light") != light


@pytest.mark.parametrize(("name", "step"), [("step-00000300", 300), ("best", None), ("step-", None), ("step-x", None)])
def test_the_step_in_a_checkpoints_name(name, step):
    assert checkpoint.step(name) == step


@pytest.mark.parametrize("shape", [*list(PRESETS.values())[:3], CONFIG])
def test_the_number_of_parameters_follows_from_the_shape(shape):
    assert shape.n_params == GPT2(shape).n_params


def test_a_run_that_was_moved_away_still_has_the_checkpoint_it_was_served_with(folder, tmp_path):
    run = ServedRun(folder, "mine")
    folder.rename(tmp_path / "away")
    assert list(run.checkpoints()) == ["step-00000004"]
    assert run.card(folder / "step-00000004", watch=True, unready=None).step is None
    with pytest.raises(ValueError, match="no metrics.jsonl"):
        run.curve("light")
