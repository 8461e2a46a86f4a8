"""What a study shows of its runs while they run."""

from pathlib import Path

import pytest

from qam_lightning.online.schedule import Length
from qam_lightning.studies import local
from qam_lightning.studies.plan import Planned
from qam_lightning.studies.state import State
from qam_lightning.studies.study import Run

LENGTH = Length(100, 50)


def item(name: str, gradient_step: int = 0) -> Planned:
    run = Run("", {}, {}, Path(name), [])
    state = State("stopped" if gradient_step else "new", gradient_step, length=LENGTH)
    return Planned(run, state, 1, 1, None, {})


@pytest.mark.parametrize("terminal", [False, True])
def test_the_share_of_each_run_and_the_time_that_is_left(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(local.time, "monotonic", lambda: now)
    states = {
        "a": State("running", 100, 20, LENGTH),
        "b": State("running", 9, 0, LENGTH),
    }
    monkeypatch.setattr(local, "told_state_of", lambda path, length: states[str(path)])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    monkeypatch.delenv("NO_COLOR" if terminal else "FORCE_COLOR", raising=False)
    runs = [item("a", 21), item("b"), item("c"), item("d")]
    with local._Display() as display:
        for run in runs:
            display.begun(run)
        display.ended(runs[2], State("finished", 100, 50, LENGTH), "[1/6] c finished")
        display.ended(runs[3], State("failed", 42, 0, LENGTH), "[2/6] d failed: no data")
        display.show(runs[:2], 2)  # too early
        assert "%" not in capsys.readouterr().out
        now += 60
        display.show(runs[:2], 2)
    shown = capsys.readouterr().out
    assert "  a:  80%, 100 updates, 20 in the environment" in shown
    assert "  b:   6%, 9 updates" in shown
    # 300 steps in a minute: 99 of a, 9 of b, 150 of c and 42 of d. To come: 30 of a, 141 of b, and
    # two runs of 150. None of d, which failed.
    assert "1 of 6 finished, 2 running, 2 waiting, 0:01:34 left" in shown
