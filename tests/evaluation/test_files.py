"""Videos, pictures and reports that evaluations leave behind."""

import json

import imageio.v3 as iio
import numpy as np
import pytest
from matplotlib.figure import Figure

from qam_lightning.envs.rollout import Episode
from qam_lightning.evaluation.plots import _draw_curves, draw_picture, read_curve
from qam_lightning.evaluation.report import build_report, write_report
from qam_lightning.evaluation.video import write_video
from qam_lightning.util.errors import UserError

HEADER = "gradient_step,env_step,phase,success,return,length,seconds\n"


def write_curve(run, rows, header=HEADER):
    (run / "metrics").mkdir(parents=True)
    (run / "metrics" / "eval.csv").write_text(header + "".join(f"{row}\n" for row in rows))
    return run


@pytest.fixture
def runs(tmp_path):
    first = ["100,0,offline,0.1,-9,9,1", "200,0,offline,0.3,-9,9,1", "300,150,online,0.5,-9,9,1"]
    second = ["100,0,offline,0.2,-9,9,1", "200,0,offline,0.2,-9,9,1", "300,150,online,0.9,-9,9,1"]
    return [write_curve(tmp_path / "a", first), write_curve(tmp_path / "b", second)]


def test_a_video_holds_the_frames(tmp_path):
    frames = [np.full((48, 64, 3), value, np.uint8) for value in (30, 120, 220)]
    path = write_video(tmp_path / "videos" / "x.mp4", frames, fps=10)
    back = iio.imread(path, plugin="FFMPEG")
    assert back.shape == (3, 48, 64, 3)
    np.testing.assert_allclose(back.mean((1, 2, 3)), [30, 120, 220], atol=4)


def test_read_curve(runs):
    curve = read_curve(runs[0])
    # Offline gradient steps, then environment steps: there are more of these than of updates.
    np.testing.assert_array_equal(curve.steps, [100, 200, 350])
    np.testing.assert_array_equal(curve.success, [0.1, 0.3, 0.5])
    assert curve.online_from == 200  # the last step evaluated offline


def test_the_online_phase_begins_with_the_last_offline_row_of_training(runs):
    rows = ["190,0,offline,1", "230,0,offline,1", "240,60,online,1"]
    table = "gradient_step,env_step,phase,loss\n" + "".join(f"{row}\n" for row in rows)
    (runs[0] / "metrics/train.csv").write_text(table)
    curve = read_curve(runs[0])
    assert curve.online_from == 230
    np.testing.assert_array_equal(curve.steps, [100, 200, 380])


def test_a_run_without_an_offline_phase_starts_at_no_step(tmp_path):
    curve = read_curve(write_curve(tmp_path / "run", ["20,120,online,0.5,-9,9,1"]))
    assert (curve.online_from, curve.steps.tolist()) == (0, [120])


def test_a_run_of_one_phase_has_no_mark(tmp_path):
    curve = read_curve(write_curve(tmp_path / "run", ["20,0,offline,0.5,-9,9,1"]))
    assert (curve.online_from, curve.steps.tolist()) == (None, [20])


def test_pictures_mark_where_the_online_phase_begins(tmp_path, runs):
    axes = Figure().add_subplot()
    _draw_curves(axes, [read_curve(runs[0])])
    curve, mark = axes.lines
    assert curve.get_xdata().tolist() == [100, 200, 350]
    assert set(mark.get_xdata()) == {200}
    assert axes.get_xlabel() == "gradient steps offline, then environment steps"
    alone = Figure().add_subplot()
    offline = write_curve(tmp_path / "run", ["20,0,offline,0.5,-9,9,1"])
    _draw_curves(alone, [read_curve(offline)])
    assert len(alone.lines) == 1 and alone.get_xlabel() == "gradient steps"


@pytest.mark.parametrize(
    ("number", "band", "low", "high"),
    [
        (3, "mean of 3 runs; band: smallest to largest run", 0.4, 0.8),
        (5, "mean of 5 runs; band: 95% interval of the mean at each step", 0.44, 1.0),
    ],
)
def test_pictures_say_what_a_band_is(tmp_path, number, band, low, high):
    scores = [0.4, 0.6, 0.8, 0.9, 1.0][:number]
    rows = [f"100,0,offline,{score},0,0,0" for score in scores]
    curves = [read_curve(write_curve(tmp_path / row, [row])) for row in rows]
    axes = Figure().add_subplot()
    _draw_curves(axes, curves)
    assert band in [text.get_text() for text in axes.texts]
    (area,) = axes.collections
    edges = area.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == pytest.approx((low, high), abs=0.01)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([], HEADER, "holds no evaluation yet"),
        (["1,2"], "step,loss\n", "line 1: has no column gradient_step, expected a CSV file with"),
        (["100,0,offline"], HEADER[:-1].replace(",success,return,length,seconds", "\n"), "success"),
        (["100,0,offline,high,0,0,0"], HEADER, "line 2: success is 'high', expected a number"),
        (["100,0,offline,,0,0,0"], HEADER, "line 2: success is '', expected a number"),
        (["100,0,offline,nan,0,0,0"], HEADER, "other numbers than those from 0 to 1"),
        (
            ["100,0,offline,0.5,0,0,0", "2e2,0,offline,0.5,0,0,0"],
            HEADER,
            "line 3: gradient_step is",
        ),
        (["100,0,idle,0.5,0,0,0"], HEADER, "line 2: phase is 'idle', expected offline or online"),
        (["100,0,offline,0.5,0,0,0,7"], HEADER, "line 2: has 8 values, expected 7"),
        (["100,0,offline,\0,0,0,0"], HEADER, r"line 2: success is '\\x00', expected a number"),
    ],
)
def test_unusable_curves_are_explained(tmp_path, rows, header, message):
    with pytest.raises(UserError, match=message) as error:
        read_curve(write_curve(tmp_path / "run", rows, header))
    assert "eval.csv" in str(error.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\0\1\n", None])
def test_a_curve_that_is_no_text_is_explained(tmp_path, content):
    path = tmp_path / "metrics" / "eval.csv"
    path.parent.mkdir()
    path.mkdir() if content is None else path.write_bytes(content)
    told = "eval.csv, line 1: is no text" if content else "eval.csv: cannot be read: it is no reg"
    with pytest.raises(UserError, match=told) as error:
        read_curve(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_curve_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"eval\.csv: no such file"):
        draw_picture(tmp_path / "p.png", [tmp_path], "title")


def test_a_picture_shows_curve_and_frames(tmp_path, runs):
    frames = [np.full((48, 64, 3), (230, 20, 20), np.uint8)] * 3
    plain = iio.imread(draw_picture(tmp_path / "1.png", runs[:1], "one"))
    strip = iio.imread(draw_picture(tmp_path / "2.png", runs[:1], "one", frames, [0, 5, 10]))
    mean = iio.imread(draw_picture(tmp_path / "3.png", runs, "both"))

    def red(picture):
        return ((picture[..., 0] > 200) & (picture[..., 1:3].max(-1) < 60)).mean()

    assert plain.shape == mean.shape and strip.shape[0] > plain.shape[0]
    assert red(plain) == 0.0 and red(strip) > 0.05
    assert not np.array_equal(plain, mean)


def test_runs_without_a_common_step_are_refused(tmp_path, runs):
    other = write_curve(tmp_path / "c", ["150,0,offline,0.1,0,0,0"])
    with pytest.raises(UserError, match="common gradient step"):
        draw_picture(tmp_path / "p.png", [runs[0], other], "title")


def test_a_report_carries_intervals_and_every_episode():
    episodes = [Episode(i, 10 + i, float(i > 0), -10.0 * i, 10 + i, []) for i in range(4)]
    report = build_report({"method": "m"}, episodes)
    assert report["method"] == "m"
    assert report["success"]["mean"] == 0.75
    assert report["success"]["low"] == pytest.approx(0.3006, abs=1e-4)
    assert report["return"] == {"mean": -15.0, "std": pytest.approx(12.9099, abs=1e-4)}
    assert report["results"][1] == {
        "episode": 1, "seed": 11, "success": 1.0, "return": -10.0, "length": 11,
    }  # fmt: skip


def test_reports_are_never_overwritten(tmp_path):
    path = tmp_path / "eval" / "last.json"
    assert write_report({"n": 1}, path) == path
    second = write_report({"n": 2}, path)
    assert second.name == "last-2.json"
    assert [json.loads(p.read_text())["n"] for p in (path, second)] == [1, 2]
    with pytest.raises(UserError, match="exists already"):
        write_report({"n": 3}, path, numbered=False)
