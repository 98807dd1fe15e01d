import functools
import math

import pytest

from gpt2_mlx import metrics, plot


def run(folder, name="run", with_test=True, with_bytes=True):
    path = folder / name
    path.mkdir()
    log = functools.partial(metrics.write, path / "metrics.jsonl")
    config, (tokens, n_bytes) = (
        {"batch_size": 2, "grad_accum_steps": 3, "block_size": 5},
        ({"train": 60}, {"train": 240}),
    )
    log("start", 0, config=config, tokens=tokens, **{"bytes": n_bytes} if with_bytes else {})
    for step in range(1, 5):
        log("train", step, loss=5 - step / 2, elapsed_s=60.0 * step)
    in_bits = [{"bits_per_byte": bits} if with_bytes else {} for bits in (1.25, 1.5, 1.75)]
    log("eval", 2, val_loss=4.25, **in_bits[0])
    log("eval", 4, val_loss=4.5, **in_bits[1])
    if with_test:
        log("test", 2, loss=4.75, perplexity=1.0, **in_bits[2])
    return path


def lines(path, x="step", y="loss"):
    """label -> points of what `draw` puts into the figure."""
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    plot.Curve(path, x, y).draw(axes, "C0", several=False)
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_the_figure_shows_what_was_logged(tmp_path):
    drawn = lines(run(tmp_path))
    assert drawn["training"] == [[1, 4.5], [2, 4.0], [3, 3.5], [4, 3.0]]
    assert drawn["validation"] == [[2, 4.25], [4, 4.5]]
    assert drawn["best 4.250 at step 2"] == [[2, 4.25]]
    assert [y for _, y in drawn["test loss 4.750"]] == [4.75, 4.75]


def test_bits_per_byte_are_those_logged_and_of_training_by_the_splits_mean(tmp_path):
    drawn = lines(run(tmp_path), y="bits-per-byte")
    assert drawn["validation"] == [[2, 1.25], [4, 1.5]]
    assert [y for _, y in drawn["test loss 1.750"]] == [1.75, 1.75]
    nats = [4.5, 4.0, 3.5, 3.0]  # a token, which spells four bytes
    assert [y for _, y in drawn["training"]] == pytest.approx([loss / 4 / math.log(2) for loss in nats])


def test_a_run_that_has_counted_bytes_from_its_resume_on_is_drawn_from_there(tmp_path):
    path = run(tmp_path, with_bytes=False)
    log = functools.partial(metrics.write, path / "metrics.jsonl")
    log("resume", 4, tokens={"train": 60}, bytes={"train": 240})
    log("eval", 6, val_loss=4.0, bits_per_byte=1.0)
    drawn = lines(path, y="bits-per-byte")
    assert drawn["validation"] == [[6, 1.0]] and len(drawn["training"]) == 4


@pytest.mark.parametrize(("x", "at_four"), [("step", 4), ("tokens", 4 * 2 * 3 * 5), ("time", 4)])
def test_the_horizontal_axis(tmp_path, x, at_four):
    assert lines(run(tmp_path), x)["training"][-1][0] == at_four


@pytest.mark.parametrize(("ending", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_files_of_all_kinds_for_one_and_several_runs(tmp_path, ending, magic):
    runs = [run(tmp_path), run(tmp_path, "other", with_test=False)]
    for chosen in (runs[:1], runs):
        out = tmp_path / f"figure{ending}"
        plot.draw(chosen, out)
        assert out.read_bytes().startswith(magic)


def test_a_curve_for_a_page_is_in_the_pages_colours(tmp_path):
    drawn = plot.svg(run(tmp_path), ink="#123456", accent="#abcdef").decode()
    assert drawn.startswith("<?xml") and "fill: #ffffff" not in drawn
    assert "#123456" in drawn and "#abcdef" in drawn and "#1f77b4" not in drawn


def test_what_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"figure\.gif; its name must end in one of \.png, \.svg, \.pdf"):
        plot.draw([run(tmp_path)], tmp_path / "figure.gif")
    with pytest.raises(ValueError, match="holds no metrics.jsonl"):
        plot.draw([tmp_path], tmp_path / "figure.png")
    with pytest.raises(ValueError, match="old has logged no bits per byte: draw it by --y loss"):
        plot.draw([run(tmp_path, "old", with_bytes=False)], tmp_path / "figure.png", y="bits-per-byte")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").write_text('{"event": "start", "step": 0}\n')
    with pytest.raises(ValueError, match="no loss yet"):
        plot.draw([empty], tmp_path / "figure.png")


def logged(folder, name, *events, **config):
    path = folder / name
    path.mkdir()
    metrics.write(path / "metrics.jsonl", "start", events[0][1] - 1, config=config)
    for event, step, loss in events:
        fields = {"val_loss" if event == "eval" else "loss": loss, "elapsed_s": 0}
        metrics.write(path / "metrics.jsonl", event, step, **fields)
    return path


def difference(*runs):
    """label -> points, and the title, of the figure of a difference."""
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    plot.Difference(*(plot.Curve(run, "step") for run in runs)).draw(axes, "C0", several=False)
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}, axes.get_title()


def test_the_difference_is_over_the_steps_that_both_have_logged(tmp_path):
    a = [("train", 1, 9.0), ("train", 2, 8.0), ("train", 4, 6.0), ("eval", 4, 5.0), ("train", 6, 4.0), ("test", 4, 7.0)]
    b = [("train", 4, 6.5), ("eval", 4, 5.25), ("train", 6, 3.0), ("eval", 6, 3.5), ("test", 6, 6.0)]
    one = logged(tmp_path, "one", *a, learning_rate=0.1, without=[], data="Z.txt", compile=True, out="one", seed=3)
    two = logged(
        tmp_path,
        "two",
        *b,
        learning_rate=0.2,
        without=["a.txt", "B.txt:3"],
        data=None,
        compile=False,
        out="two",
        seed=3,
    )
    drawn, title = difference(one, two)
    assert drawn["training"] == [[6, -1.0]]  # at step 4 one tells of steps 3 and 4, two, which began at 3, of step 4
    assert drawn["validation"] == [[4, 0.25]]
    assert [y for _, y in drawn["test loss -1.000"]] == [-1, -1]
    changes = "--learning-rate 0.1 > 0.2, --without none > a.txt B.txt:3, --data Z.txt > none, --compile true > false"
    name, *told = title.replace("\N{RIGHTWARDS ARROW}", ">").split("\n")
    assert (name, " ".join(told)) == ("two \N{MINUS SIGN} one", changes)
    out = tmp_path / "difference.png"
    plot.draw([one, two], out, difference=True)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_what_has_no_difference_is_told(tmp_path):
    one = logged(tmp_path, "one", ("train", 1, 9.0))
    two = logged(tmp_path, "two", ("train", 2, 9.0))
    with pytest.raises(ValueError, match="one and two have logged no loss over the same steps"):
        plot.draw([one, two], tmp_path / "a.png", difference=True)
    for runs in ([one], [one, two, one]):
        with pytest.raises(ValueError, match=f"--difference is of two runs, but there are {len(runs)}: "):
            plot.draw(runs, tmp_path / "a.png", difference=True)
