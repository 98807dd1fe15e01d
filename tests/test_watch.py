import asyncio
import contextlib
import subprocess

import pytest
from patience import PATIENCE, eventually
from served import add_checkpoint, begun, command, http, make_run

from gpt2_mlx import checkpoint
from gpt2_mlx.serving.watch import watch


class Recorder:
    """An AsyncEngine's swap; checkpoints in `broken` cannot be loaded."""

    def __init__(self, checkpoint):
        self.checkpoint, self.swapping = checkpoint, None
        self.swaps, self.broken = [], set()

    def swap(self, folder):
        self.swaps.append(folder.name)
        if folder.name not in self.broken:
            self.checkpoint = folder


@contextlib.asynccontextmanager
async def watching(run):
    engine = Recorder(checkpoint.resolve(run).resolve())
    task = asyncio.create_task(watch(run, engine, 0.01))
    try:
        yield engine
        assert not task.done()
    finally:
        task.cancel()


async def until(claim):
    await asyncio.to_thread(eventually, claim)


def test_every_new_best_is_told_once(tmp_path):
    run = make_run(tmp_path / "verse")

    async def test():
        async with watching(run) as engine:
            add_checkpoint(run, 6, "latest")
            add_checkpoint(run, 8, "latest", "best")
            await until(lambda: engine.swaps == ["step-00000008"])
            checkpoint.mark(run, "best", run / "step-00000002")
            await until(lambda: engine.swaps == ["step-00000008", "step-00000002"])

    asyncio.run(test())


def test_a_run_that_was_moved_away_is_waited_for(tmp_path, monkeypatch):
    run, resolve, asked = make_run(tmp_path / "verse"), checkpoint.resolve, []

    def fails_at_first(path):
        asked.append(path)
        if len(asked) < 3:
            raise OSError("a network disk that is away")
        return resolve(path)

    async def test():
        async with watching(run) as engine:
            monkeypatch.setattr(checkpoint, "resolve", fails_at_first)
            run.rename(tmp_path / "away")
            run.mkdir()
            add_checkpoint(run, 6, "latest")
            await until(lambda: engine.swaps == ["step-00000006"])

    asyncio.run(test())


def test_a_checkpoint_that_could_not_be_loaded_is_tried_again(tmp_path):
    run = make_run(tmp_path / "verse")

    async def test():
        async with watching(run) as engine:
            engine.broken.add("step-00000008")
            add_checkpoint(run, 8, "latest", "best")
            await until(lambda: len(engine.swaps) >= 2)
            engine.broken.clear()
            await until(lambda: engine.checkpoint.name == "step-00000008")

    asyncio.run(test())


def test_serve_goes_over_to_a_new_best_and_drops_nobody(tmp_path):
    run = make_run(tmp_path / "checkpoints" / "verse")
    body = {"text": "KING", "seed": 1, "temperature": 0, "max_tokens": 4000}
    with begun(tmp_path, "--watch") as (_, url):
        assert http.get(url + "/ready").json()["checkpoint"] == "step-00000004"
        short = body | {"max_tokens": 20}
        old = http.post(url + "/complete-sentence", json=short).json()
        with http.stream("POST", url + "/complete-sentence", json=body | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            add_checkpoint(run, 6, "latest", "best")
            eventually(lambda: http.get(url + "/ready").json()["checkpoint"] == "step-00000006")
            new = http.post(url + "/complete-sentence", json=short).json()
            end = [line for line in lines if line][-2:]
        assert end[1] == "data: [DONE]" and '"checkpoint": "step-00000004"' in end[0]
        assert '"completion_tokens": 4000' in end[0]
        assert (old["checkpoint"], new["checkpoint"]) == ("step-00000004", "step-00000006")
        assert old["completed_sentence"] != new["completed_sentence"]
        again = http.post(url + "/complete-sentence", json=short | {"checkpoint": "step-00000004"}).json()
        assert again["completed_sentence"] == old["completed_sentence"]
        assert "gpt2_checkpoint_step 6.0" in http.get(url + "/metrics").text.split("\n")
        card = http.get(url + "/card").json()
        assert card["watch"] and card["checkpoint"]["name"] == "step-00000006"
        half = add_checkpoint(run, 8)
        whole = (half / "config.json").read_bytes()
        (half / "config.json").write_bytes(whole[:40])  # a copy has come so far
        checkpoint.mark(run, "best", half)
        eventually(lambda: "step-00000008 could not be loaded" in (tmp_path / "log").read_text())
        (half / "config.json").write_bytes(whole)
        eventually(lambda: http.get(url + "/ready").json()["checkpoint"] == "step-00000008")
        assert "gpt2_engine_restarts_total 0.0" in http.get(url + "/metrics").text.split("\n")


@pytest.mark.parametrize("path", ["verse/best", "verse/step-00000002"])
def test_only_a_run_can_be_watched(tmp_path, path):
    make_run(tmp_path / "verse")
    done = subprocess.run(
        command("--watch", "--checkpoint", path), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 2 and "must be a run" in done.stderr and done.stderr.count("\n") == 1
