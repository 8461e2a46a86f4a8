"""Training against the exact Q, and the command that does it for all methods."""

import csv
import io
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from qam_lightning.core.adjoint import autograd_vjp
from qam_lightning.laboratory import report, training
from qam_lightning.laboratory.__main__ import main
from qam_lightning.laboratory.distances import sliced_wasserstein
from qam_lightning.laboratory.problems import PROBLEMS
from qam_lightning.util.errors import UserError
from qam_lightning.util.provenance import versions_line
from tests.methods.paper import TABLE_4

RECIPES = training.recipes()
TINY = training.Effort(steps=2, flow_steps=3, samples=16)


@pytest.fixture(params=RECIPES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_method_has_a_recipe() -> None:
    assert set(RECIPES) >= TABLE_4 | set(training.VARIANTS)
    assert set(training.SCANS) <= set(RECIPES)


@pytest.mark.parametrize("problem", ["quadratic", "moons"])
def test_every_method_trains_and_acts(name: str, problem: str) -> None:
    """One candidate, two steps: the trained parameters move and samples have their shape."""
    values = training.candidates(name, RECIPES[name], tau=3.0, flow_steps=100)[0]
    method = training.build(RECIPES[name], values, PROBLEMS[problem], TINY.flow_steps, seed=0)
    before = [p.clone() for p in method.parameters()]
    training.fit(method, PROBLEMS[problem], TINY.steps)
    # CGQL and BC have nothing to learn where Q and the behaviour's flow are exact.
    moved = any(not torch.equal(p, q) for p, q in zip(before, method.parameters(), strict=True))
    assert moved != (name in ("cgql", "bc"))
    sample = training.policy_sample(method, TINY.samples)
    assert sample.shape == (TINY.samples, PROBLEMS[problem].dim)
    assert sample.abs().max() <= 1


def test_clean_actions_have_exact_values_in_every_member(name: str) -> None:
    problem = PROBLEMS["moons"]
    values = training.candidates(name, RECIPES[name], tau=3.0, flow_steps=100)[0]
    method = training.build(RECIPES[name], values, problem, TINY.flow_steps, seed=0)
    a = problem.sample_tilt(5, torch.Generator().manual_seed(0))
    for critic in (method.critic, method.critic_ema) if method.has_critic else ():
        assert torch.equal(critic(torch.zeros(5, 1), a), problem.q(a).expand(2, -1))


def test_temperatures_are_true_and_the_rest_is_scanned() -> None:
    for name, recipe in RECIPES.items():
        for values in training.candidates(name, recipe, tau=3.0, flow_steps=50):
            assert set(values) >= set(recipe.tuned)
            assert values.get("tau", 3.0) == 3.0 or (name, values["tau"]) == ("bam", 150.0)
    assert len(training.candidates("qam", RECIPES["qam"], 3.0, 50)) == 1
    etas = [v["eta"] for v in training.candidates("dac", RECIPES["dac"], 3.0, 50)]
    assert 1 / 6 in etas
    assert any(v["best_of_n"] == 32 for v in training.candidates("ifql", RECIPES["ifql"], 3.0, 50))


def test_a_new_method_joins_by_its_configuration(tmp_path: Path) -> None:
    config = {
        "model": {
            "class_path": "qam_lightning.methods.fql.FQL",
            "init_args": {"alpha": "${tuned.${tuned_as}.alpha}", "grad_clip": 0.5},
        },
        "tuned": {"scene": {"alpha": 7.0}, "cube-double": {"alpha": 2.0}},
    }
    (tmp_path / "newcomer.yaml").write_text(yaml.safe_dump(config))
    (recipe,) = training.recipes(tmp_path).values()
    assert recipe.fixed == {"grad_clip": 0.5}
    assert training.candidates("newcomer", recipe, 3.0, 50) == [{"alpha": 2.0}, {"alpha": 7.0}]


def test_training_is_a_function_of_the_seed() -> None:
    arguments = RECIPES["qam"], {"tau": 3.0}, PROBLEMS["quadratic"], TINY
    one, other = training.run(*arguments, 0), training.run(*arguments, 0)
    assert torch.equal(one, other)
    assert not torch.equal(one, training.run(*arguments, 1))


def test_the_best_candidate_is_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three shifts of the exact sample the smallest is taken; a diverged one never."""
    problem = PROBLEMS["quadratic"]

    def shifted(recipe, values, problem, effort, seed):  # noqa: ANN001, ANN202
        return training.tilt_sample(problem, effort.samples) + values["eta"]

    monkeypatch.setattr(training, "run", shifted)
    grid = {"dac": {"eta": (0.3, float("nan"), 0.1)}}
    monkeypatch.setattr(training, "SCANS", grid)
    monkeypatch.setattr(training, "candidates", lambda *_: [{"eta": x} for x in grid["dac"]["eta"]])
    values, samples = training.best_of("dac", RECIPES["dac"], problem, TINY, seeds=2)
    assert values == {"eta": 0.1}
    assert samples.shape == (2, 16, 1)


def test_floor_is_below_the_behaviours_distance() -> None:
    for name in PROBLEMS:
        floor, behavior = report.references([name], 500)
        assert floor.w1 < floor.w1_high < 0.5 * behavior.w1
        assert floor.energy < floor.energy_high < 0.5 * behavior.energy


@pytest.mark.slow
def test_command_writes_tables_and_pictures_and_joins_runs(tmp_path: Path) -> None:
    common = ["--quick", "--out", str(tmp_path), "--flow_steps", "4"]
    assert main([*common, "--methods", "rlpd", "--problems", "quadratic", "moons"]) == 0
    assert main([*common, "--methods", "fawac", "--problems", "quadratic"]) == 0
    with open(tmp_path / "tilt.csv", newline="") as file:
        rows = {(row["problem"], row["method"]): row for row in csv.DictReader(file)}
    references = {(p, m) for p in ("quadratic", "moons") for m in ("exact tilt", "behaviour")}
    methods = {("quadratic", "rlpd"), ("moons", "rlpd"), ("quadratic", "fawac")}
    assert set(rows) == references | methods
    assert all(float(row["w1"]) >= 0 for row in rows.values())
    text = (tmp_path / "tilt.md").read_text()
    made_with, *tables = text.split("\n\n")
    assert made_with == versions_line()
    assert "| values | tried |" in tables[0] and len(tables) == 4
    (tried,) = (line.split("|")[-2] for line in tables[0].splitlines() if "| rlpd |" in line)
    assert tried.strip() == "1"
    assert "| fawac |" in tables[0] and "| fawac |" in tables[1]
    for table in tables:
        rows_of_table = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows_of_table}) == 1, "rows of unequal width"
    assert (tmp_path / "tilt.png").stat().st_size > 10_000
    for problem in ("quadratic", "moons"):
        assert (tmp_path / f"tilt_{problem}.png").stat().st_size > 10_000
    first, *others = report.load(tmp_path, 500).values()
    copy = tmp_path / "copy"
    copy.mkdir()
    report.add(copy, first)
    (again,) = report.load(copy, 500).values()
    assert torch.equal(first.samples, again.samples) and first[:5] == again[:5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "fedti"], "error: --methods fedti: no such name; did you mean fedit?"),
        (["--problems", "moon"], "error: --problems moon: no such name; did you mean moons?"),
        (["--out", "FILE"], "is a file; name a folder"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = [str(tmp_path / "file") if x == "FILE" else x for x in arguments]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        (
            ["qam", "qam_denoiser"],
            "at least 2 with integrator denoiser, for --methods qam_denoiser",
        ),
        (["qam", "bam"], "at least 2 and at most 10000, for --methods bam"),
    ],
)
def test_too_few_flow_steps_are_told_before_anything_is_trained(
    methods: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(training, "best_of", None)
    command = ["--out", str(tmp_path / "new"), "--flow_steps", "1", "--methods", *methods]
    assert main(command) == 2
    assert capsys.readouterr().err == f"error: --flow_steps is 1, expected {reason}\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("flag", ["--steps", "--seeds", "--flow_steps"])
def test_numbers_out_of_range_are_named(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([flag, "0"])
    assert caught.value.code == 2
    assert f"{flag}: expected at least 1, found 0" in capsys.readouterr().err


ABOUT = {"problem": "far", "method": "qam", "flow_steps": 50, "steps": 100, "values": ""}


def saved(samples: object = np.zeros((2, 500, 1), np.float16), **about: object) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **{json.dumps(ABOUT | about): samples})  # type: ignore[arg-type]
    return file.getvalue()


def flipped(content: bytes) -> bytes:
    """Flip bits where the compressed block begins, which zlib refuses."""
    start = content.index(b".npy") + 24
    return (
        content[:start]
        + bytes(x ^ 0x5A for x in content[start : start + 40])
        + content[start + 40 :]
    )


@pytest.mark.parametrize(
    "content",
    [
        b"nothing of the kind",
        b"",
        saved()[:100],
        flipped(saved()),
        saved(problem="older"),
        saved(flow_steps="50"),
        saved(steps=None),
        saved(more=1),
        saved(np.float16(1)),
        saved(np.zeros((2, 500, 2))),
        saved(np.zeros((0, 500, 1))),
        saved(np.array(["a"])),
    ],
    ids=range(12),
)
def test_foreign_samples_are_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / report.SAMPLES
    path.write_bytes(content)
    command = ["--quick", "--methods", "bc", "--problems", "far", "--out", str(tmp_path)]
    assert main(command) == 2
    advice = "no samples of this laboratory; delete it or name another --out"
    assert capsys.readouterr().err == f"error: {path}: {advice}\n"
    assert path.read_bytes() == content


def entry(method: str, n: int = 500) -> report.Entry:
    return report.Entry("moons", method, 4, 2, "", torch.zeros(1, n, 2))


def test_samples_of_another_size_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.add(tmp_path, entry("qam", 2000))
    assert main(["--quick", "--out", str(tmp_path)]) == 2
    assert "holds samples of another size; name another --out" in capsys.readouterr().err
    with pytest.raises(UserError, match="another size"):  # another process was faster
        report.add(tmp_path, entry("bam"))
    assert list(report.load(tmp_path, 2000)) == [("moons", "qam", 4)]


def test_results_of_many_at_once_are_all_kept(tmp_path: Path) -> None:
    names = [f"method {i}" for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: report.add(tmp_path, entry(name)), names))
    assert {method for _, method, _ in report.load(tmp_path, 500)} == set(names)
    assert [path.name for path in tmp_path.iterdir()] == [report.SAMPLES]


def test_a_command_keeps_what_another_adds_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one's result is in the report too; given steps count, with --quick as without."""
    real = training.best_of

    def beside(*arguments: Any) -> Any:
        report.add(tmp_path, entry("bam"))
        return real(*arguments)

    monkeypatch.setattr(training, "best_of", beside)
    command = ["--methods", "bc", "--problems", "moons", "--flow_steps", "4", "--seeds", "1"]
    assert main([*command, "--quick", "--steps", "2", "--out", str(tmp_path)]) == 0
    found = {method: entry.steps for (_, method, _), entry in report.load(tmp_path, 500).items()}
    assert found == {"bam": 2, "bc": 2}
    assert "| bam |" in (tmp_path / "tilt.md").read_text()


def test_a_clone_is_the_behaviours_own_flow() -> None:
    problem = PROBLEMS["moons"]
    for name in ("qam", "dsrl", "ifql"):
        values = training.candidates(name, RECIPES[name], tau=3.0, flow_steps=100)[0]
        method = training.build(RECIPES[name], values, problem, flow_steps=100, seed=0)
        noise = method.acting_noise(1000, torch.Generator().manual_seed(0))
        cloned = method.behavior_act(torch.zeros(1000, 1), noise)[:, 0]
        exact = problem.behavior.sample(1000, torch.Generator().manual_seed(1))
        assert sliced_wasserstein(cloned, exact) < 0.04


def test_a_clones_jacobian_is_that_of_its_field() -> None:
    flow = training.ExactFlow(PROBLEMS["moons"].behavior)
    torch.manual_seed(0)
    states, times = torch.randn(4, 5, 2), torch.tensor([0.0, 0.3, 0.7, 1.0])
    found, g = flow.linearize(torch.zeros(5, 1), states, times), torch.randn(5, 2)
    slow = autograd_vjp(flow.at(torch.zeros(5, 1)), states, times)
    for i in range(4):
        torch.testing.assert_close(found(i, g), slow(i, g), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_qam_comes_near_the_tilt() -> None:
    problem = PROBLEMS["quadratic"]
    effort = training.Effort(steps=300, flow_steps=20, samples=2000)
    target = training.tilt_sample(problem, effort.samples)
    reached = training.run(RECIPES["qam"], {"tau": problem.tau}, problem, effort, seed=0)
    behavior = report.behavior("quadratic", effort.samples).samples[0]
    assert sliced_wasserstein(reached, target) < sliced_wasserstein(behavior, target) / 4


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
def test_five_steps_come_near_the_tilt_in_the_denoiser_scheme(problem: str) -> None:
    """At most half as far as in the paper's scheme, and as the behaviour is."""
    effort = training.Effort(steps=500, flow_steps=5, samples=2000)
    known = PROBLEMS[problem]
    tau = {"tau": known.tau}
    target = training.tilt_sample(known, effort.samples)
    ours, papers = (
        sliced_wasserstein(training.run(RECIPES[name], tau, known, effort, 0), target)
        for name in ("qam_denoiser", "qam")
    )
    behavior = report.behavior(problem, effort.samples).samples[0]
    assert ours < sliced_wasserstein(behavior, target) / 2
    assert ours < papers / 2


@pytest.mark.slow
def test_the_schemes_are_compared_by_t_in_a_table_and_a_picture(tmp_path: Path) -> None:
    entries: report.Entries = {}
    problems = ("far", "moons")
    for key in itertools.product(problems, ("qam", "qam_denoiser"), (5, 10)):
        sample = training.tilt_sample(PROBLEMS[key[0]], 200, number=1)
        entries[key] = report.Entry(*key, 1, "tau 3", sample[None])
    tables = report.write_all(tmp_path, entries, 5).split("\n\n")
    (table,) = (t for t in tables if "qam_denoiser |" in t.splitlines()[0])
    cells = [[x.strip() for x in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    lines = {(x[0], x[2]): x for x in cells}
    assert set(lines) == {(p, str(t)) for p in problems for t in report.CONVERGENCE}
    far, moons = lines["far", "5"], lines["moons", "5"]
    assert float(far[3]) > 5 * float(far[6]) and float(far[4]) > 0.3
    assert moons[3] == moons[4] == moons[6] == "–" != moons[5]
    assert lines["far", "20"][5] == lines["far", "20"][7] == "–"
    assert (tmp_path / "tilt_schemes.png").stat().st_size > 10_000
