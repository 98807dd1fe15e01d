import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_mlx import metrics

ROOT = Path(__file__).parents[1]


def logged(path, *events):
    log = functools.partial(metrics.write, path)
    for event, step, fields in events:
        log(event, step, **fields)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, ("start", 0, {"device": "naïve"}), ("train", 10, {"loss": 1.5}))
    logged(path, ("eval", 10, {"val_loss": math.nan}))  # appended, and JSON has no nan
    assert metrics.read(path) == [
        {"event": "start", "step": 0, "device": "naïve"},
        {"event": "train", "step": 10, "loss": 1.5},
        {"event": "eval", "step": 10, "val_loss": None},
    ]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_torn_last_line_is_left_out_and_any_other_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, ("train", 1, {}), ("train", 2, {}))
    path.write_text(path.read_text()[:-5])
    assert [e["step"] for e in metrics.read(path)] == [1]
    path.write_text('{"event": "train", "step": 1}\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2 is not an event"):
        metrics.read(path)


def test_rewinding_drops_what_came_after_and_what_ended_the_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(
        path,
        ("start", 0, {}),
        ("train", 1, {}),
        ("save", 1, {}),
        ("train", 2, {}),
        ("end", 1, {}),
        ("test", 1, {}),
        ("sample", 1, {}),
    )
    path.open("a").write('{"torn')
    kept = metrics.rewind(path, 1)
    assert [e["event"] for e in kept] == ["start", "train", "save"]
    assert metrics.read(path) == kept
    assert metrics.rewind(path, -1) == []
    assert metrics.rewind(tmp_path / "none", 5) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_a_full_disk_is_told_and_leaves_no_half_line(tmp_path):
    assert "cannot be written: No space left" in metrics.write(Path("/dev/full"), "train", 1, loss=1.0)
    log = tmp_path / "metrics.jsonl"
    assert metrics.write(log, "train", 1, loss=1.0) is None
    limit = f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); size = {log.stat().st_size} + 9"
    limit += "; resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))"
    code = f"{limit}\nfrom pathlib import Path; from gpt2_mlx import metrics"
    code += f"\nprint(metrics.write(Path({str(log)!r}), 'train', 2, loss=1.0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "cannot be written" in done.stdout, done.stderr
    assert metrics.write(log, "train", 3) is None
    assert [event["step"] for event in metrics.read(log)] == [1, 3]
