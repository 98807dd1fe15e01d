"""The door train.py, as a user opens it: in a process of its own."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from events import check
from trained import ROOT, begin, command, final_bytes, read_to_step, train

from gpt2_mlx import GPT2, GPT2Config, checkpoint, metrics
from gpt2_mlx.training.config import TrainConfig
from gpt2_mlx.training.settle import settle


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = train(text, run)
    assert done.returncode == 0, done.stderr
    return run


def test_a_run_leaves_what_the_contract_says(undisturbed, text):
    facts = json.loads((undisturbed / "train.json").read_text())
    assert facts["config"]["n_embd"] == 8
    assert facts["versions"]["mlx"]
    events = metrics.read(undisturbed / "metrics.jsonl")
    names = [e["event"] for e in events]
    assert names[0] == "start" and names[-1] == "end"
    assert check(undisturbed / "metrics.jsonl") == {"start", "train", "eval", "save", "test", "sample", "end"}
    assert events[0]["tokens"]["train"] > 8 * events[0]["tokens"]["val"] - 20
    assert (undisturbed / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert checkpoint.load(checkpoint.resolve(undisturbed)).config.n_embd == 8


def test_the_same_seed_gives_the_same_bytes(undisturbed, text, tmp_path):
    assert train(text, tmp_path / "again").returncode == 0
    assert final_bytes(tmp_path / "again") == final_bytes(undisturbed)
    assert train(text, tmp_path / "other", seed=1).returncode == 0
    assert final_bytes(tmp_path / "other") != final_bytes(undisturbed)


def test_killed_at_random_instants_and_resumed_it_ends_as_if_undisturbed(undisturbed, text, tmp_path):
    run, instants = tmp_path / "killed", random.Random(0)
    kills = int(os.environ.get("KILLS", "6"))
    for i, step in enumerate(sorted(instants.choices(range(1, 36), k=kills))):
        with begin(command(text, run, "--resume")) as process:
            if i % 2:
                process.stdout.readline()
                time.sleep(instants.uniform(0, 0.3))  # while it finds out where to go on
            else:
                read_to_step(process, step)
                time.sleep(instants.uniform(0, 0.03))  # anywhere within a step, an evaluation or a save
            process.kill()
        assert process.returncode == -signal.SIGKILL
    done = train(text, run, "--resume")
    assert done.returncode == 0, done.stderr
    assert final_bytes(run) == final_bytes(undisturbed)
    steps = [e["step"] for e in metrics.read(run / "metrics.jsonl") if e["event"] == "eval"]
    assert steps == [20, 40]  # told once each
    assert not list(run.glob(".*.tmp"))


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_stopped_by_a_signal_it_saves_and_can_go_on(undisturbed, text, tmp_path, name, status):
    run = tmp_path / "run"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = begin(command(text, run, save_interval=1000), buffered)
    output = read_to_step(process)
    process.send_signal(getattr(signal, name))
    output += process.communicate()[0]
    assert process.returncode == status, output
    assert f"stopped by {name} at step" in output
    assert metrics.read(run / "metrics.jsonl")[-1]["reason"] == name
    assert train(text, run, "--resume").returncode == 0
    assert final_bytes(run) == final_bytes(undisturbed)


def test_two_processes_cannot_hold_one_run(text, tmp_path):
    run = tmp_path / "run"
    first = begin(command(text, run, max_steps=100_000))
    read_to_step(first)
    second = train(text, run, "--resume", max_steps=100_000)
    assert second.returncode == 2
    assert "is in use by another process" in second.stderr
    first.send_signal(signal.SIGTERM)
    first.communicate()
    assert first.returncode == 143
    told = [e["step"] for e in metrics.read(run / "metrics.jsonl") if e["event"] == "train"]
    assert told == list(range(1, len(told) + 1))


def test_a_second_run_in_a_folder_needs_resume(undisturbed, text):
    before = final_bytes(undisturbed)
    done = train(text, undisturbed)
    assert done.returncode == 2
    assert "holds a run already: go on with --resume" in done.stderr
    assert final_bytes(undisturbed) == before


def test_a_plan_for_a_folder_that_holds_a_run_is_of_the_weights_to_start_from(undisturbed, text):
    flags = TrainConfig(data=str(text), init_from=str(undisturbed), out=str(undisturbed), device="cpu", plan=True)
    shape = json.loads((undisturbed / "best" / "config.json").read_text())
    assert settle(flags, over=None).config.n_embd == shape["n_embd"]


def without_links(run: Path) -> None:
    """As a copy that left the links out."""
    for name in ("latest", "best"):
        (run / name).unlink()


def with_folders(run: Path) -> None:
    """As a copy that followed them: `cp -L`."""
    for name in ("latest", "best"):
        target = (run / name).resolve()
        (run / name).unlink()
        shutil.copytree(target, run / name)


def with_a_dangling_link(run: Path) -> None:
    (run / "latest").unlink()
    (run / "latest").symlink_to("step-00000099")


@pytest.mark.parametrize("copied", [without_links, with_folders, with_a_dangling_link])
def test_a_run_whose_links_were_lost_goes_on_exactly(undisturbed, text, tmp_path, copied):
    run = tmp_path / "copied"
    assert train(text, run, max_steps=20).returncode == 0
    copied(run)
    before = {path.name: path.read_bytes() for path in (run / "step-00000020").iterdir()}
    refused = train(text, run)
    assert refused.returncode == 2 and "holds a run already: go on with --resume" in refused.stderr
    assert {path.name: path.read_bytes() for path in (run / "step-00000020").iterdir()} == before
    done = train(text, run, "--resume", max_steps=22)
    assert done.returncode == 0, done.stderr
    assert ("going on from step-00000020" in done.stdout) == (copied is not with_folders)
    assert [e["step"] for e in metrics.read(run / "metrics.jsonl") if e["event"] == "train"] == list(range(1, 23))
    assert (run / "latest").is_symlink() and (run / "latest").resolve().name == "step-00000022"
    assert (run / "best").is_symlink()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_a_log_that_cannot_be_written_costs_a_line_and_not_the_run(undisturbed, text, tmp_path):
    code = "from pathlib import Path; from gpt2_mlx import cli, metrics; from gpt2_mlx.commands import train\n"
    code += "write = metrics.write; metrics.write = lambda log, *a, **k: write(Path('/dev/full'), *a, **k)\n"
    run = tmp_path / "run"
    arguments = command(text, run)
    code += f"import sys; sys.argv = {arguments[1:]!r}; cli.run(train.main)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "/dev/full cannot be written: No space left on device; the training goes on" in done.stdout
    assert done.stdout.count("the training goes on") == 1
    assert final_bytes(run) == final_bytes(undisturbed)


def test_a_finished_run_can_be_resumed_further(undisturbed, text, tmp_path):
    run = tmp_path / "run"
    assert train(text, run).returncode == 0
    assert train(text, run, "--resume", max_steps=42).returncode == 0
    assert "resume" in check(run / "metrics.jsonl")
    assert (run / "latest").resolve().name == "step-00000042"


def fine_tune(text: Path, init: Path, out: Path, *flags: str) -> subprocess.CompletedProcess:
    words = [f"--data={text}", f"--init-from={init}", f"--out={out}", "--device=cpu", "--sample-interval=0", *flags]
    return subprocess.run([sys.executable, "train.py", *words], capture_output=True, text=True, cwd=ROOT)


def val_losses(run: Path) -> dict[int, float]:
    return {e["step"]: e["val_loss"] for e in metrics.read(run / "metrics.jsonl") if e["event"] == "eval"}


def test_weights_of_a_run_can_be_the_beginning(undisturbed, text, tmp_path):
    done = fine_tune(text, undisturbed, tmp_path / "tuned", "--max-steps=4", "--eval-interval=2")
    assert done.returncode == 0, done.stderr
    losses = val_losses(tmp_path / "tuned")
    assert list(losses) == [0, 2, 4]
    assert abs(losses[0] - min(val_losses(undisturbed).values())) < 1e-4  # before the first step: what they knew
    assert losses[4] < losses[0]
    saved = json.loads((tmp_path / "tuned" / "train.json").read_text())["config"]
    assert (saved["optimizer"], saved["patience"], saved["warmup_steps"]) == ("adamw", 3, 0)


def test_fine_tuning_goes_on_after_a_kill_before_its_first_checkpoint(undisturbed, text, tmp_path):
    assert fine_tune(text, undisturbed, tmp_path / "whole", "--max-steps=2").returncode == 0
    run = tmp_path / "killed"
    run.mkdir()
    (run / "train.json").write_bytes((tmp_path / "whole" / "train.json").read_bytes())
    done = subprocess.run(
        [sys.executable, "train.py", "--resume", f"--out={run}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert val_losses(run) == val_losses(tmp_path / "whole")


def test_weights_that_training_makes_worse_stay_the_best(undisturbed, text, tmp_path):
    run = tmp_path / "spoilt"
    done = fine_tune(
        text, undisturbed, run, "--learning-rate=10", "--max-steps=9", "--eval-interval=1", "--warmup-steps=0"
    )
    assert done.returncode == 0, done.stderr
    losses = val_losses(run)
    assert list(losses) == [0, 1, 2, 3]  # patience
    assert (run / "best").resolve().name == "step-00000000"
    assert "(weights of step 0)" in done.stdout


def test_positions_can_be_cropped(undisturbed, text, tmp_path):
    done = fine_tune(text, undisturbed, tmp_path / "short", "--max-steps=1", "--block-size=9", "--learning-rate=1e-12")
    assert done.returncode == 0, done.stderr
    whole, short = checkpoint.load(checkpoint.resolve(undisturbed)), checkpoint.load(tmp_path / "short" / "latest")
    assert short.config.block_size == 9
    assert abs(short.wpe.weight - whole.wpe.weight[:9]).max() < 1e-6
    assert fine_tune(text, undisturbed, tmp_path / "short", "--resume", "--max-steps=2").returncode == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n-embd=16"], "--n-embd is 16, but"),
        (["--block-size=17"], "has 16 at most"),
        (["--preset=tiny"], "--preset is tiny, but --init-from"),
    ],
)
def test_a_shape_that_the_weights_do_not_have_is_refused(undisturbed, text, tmp_path, flags, message):
    done = fine_tune(text, undisturbed, tmp_path / "run", *flags)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_quantised_weights_are_refused_and_leave_nothing(text, tmp_path):
    model = GPT2(GPT2Config(block_size=16, n_layer=1, n_head=1, n_embd=32))
    model.quantize(8)
    checkpoint.save(tmp_path / "q8", model)
    done = fine_tune(text, tmp_path / "q8", tmp_path / "run")
    assert done.returncode == 2
    assert f"--init-from is {tmp_path / 'q8'}, which is quantised" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"optimizer": "sgd"}, "invalid choice 'sgd' for argument '--optimizer'. Expected one of ("),
        ({"max_steps": "many"}, "--max-steps"),
        ({"max_steps": 0}, "--max-steps is 0; it must be at least 1"),
        ({"learning_rate": -1}, "--learning-rate is -1.0; it must be more than 0"),
        ({"seed": 2**32}, "--seed is 4294967296; it must be less than 2^32"),
        ({"n_head": 3}, "n_embd is 8; it must be a multiple of n_head, which is 3"),
        ({"dropout": 2}, "dropout is 2.0; it must be at least 0 and less than 1"),
        ({"data": "nowhere"}, "--data is 'nowhere', which is no file or folder"),
        ({"block_size": 5000}, "with --block-size 5000"),
        ({"batch_size": 10**8}, "tiny with --batch-size 100000000 does not fit: it needs "),
        ({"wired_limit_gb": 4}, "--wired-limit-gb is 4.0; only a Mac's GPU has such a limit"),
        ({"init_from": "nowhere"}, "nowhere is neither a checkpoint"),
        ({"depth": 3}, "Unrecognized options: --depth"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(text, tmp_path, flags, message):
    done = train(text, tmp_path / "run", **flags)
    assert done.returncode == 2
    assert done.stderr.startswith("train.py: error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_plan_tells_what_a_run_takes_and_leaves_nothing(text, tmp_path):
    done = train(text, tmp_path / "run", "--plan", grad_accum_steps=3)
    assert done.returncode == 0, done.stderr
    assert "step:   6 x 16 tokens, tiny" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line[:1] == " "]
    assert [row[:3] for row in rows] == [["2", "3", "no"], ["1", "6", "no"], ["2", "3", "yes"], ["1", "6", "yes"]]
    assert rows[0][-2:] == ["this", "run"]
    assert not (tmp_path / "run").exists()


def test_resuming_with_another_shape_is_refused(undisturbed, text):
    done = train(text, undisturbed, "--resume", n_embd=16)
    assert done.returncode == 2
    assert "--n-embd is 16, but the run to resume was started with 8" in done.stderr


def test_resuming_with_another_text_is_refused(text, tmp_path):
    copy = tmp_path / "verse.txt"
    copy.write_text(text.read_text())
    assert train(copy, tmp_path / "run", max_steps=1).returncode == 0
    copy.write_text(text.read_text() + "One line more.")
    done = train(copy, tmp_path / "run", "--resume", max_steps=2)
    assert done.returncode == 2
    assert "verse.txt is not the text that" in done.stderr


def test_help_names_every_flag():
    done = subprocess.run([sys.executable, "train.py", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    for name in ("data", "preset", "max-steps", "learning-rate", "resume", "patience", "compile", "no-compile"):
        assert f"--{name}" in done.stdout
