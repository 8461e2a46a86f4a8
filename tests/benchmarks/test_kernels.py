"""benchmarks/kernels.py lists the kernels of a compiled update."""

import pytest

from tests.benchmarks.loading import load


def test_the_products_of_an_update_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = load("kernels", monkeypatch)
    tiny = {"width": 8, "depth": 1, "num_critics": 2, "flow_steps": 2}
    monkeypatch.setitem(kernels.SIZES, "paper", tiny)
    shown: list[list[tuple[str, float, float]]] = []
    listed = kernels.Profiled.kernels
    monkeypatch.setattr(
        kernels.Profiled, "kernels", lambda self: shown.append(listed(self)) or shown[-1]
    )
    assert kernels.main(["bc", "--threads", "1", "--updates", "2"]) == 0
    (found,) = shown
    # Forward: the state's and the action's first layer, and the last. Backward: the three layers'
    # weights, and what enters the last.
    products = sum(calls for name, calls, _ in found if name in ("mm_out", "addmm_out"))
    assert products == 7
    assert all(ms > 0 for *_, ms in found)
    assert "products" in capsys.readouterr().out
