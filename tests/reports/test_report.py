"""Reports: their numbers, of run folders whose scores are known."""

import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qam_lightning.reports.comparison import compare
from qam_lightning.reports.figures import profiles, shown
from qam_lightning.reports.report import FILES, write_report
from qam_lightning.reports.results import read_result, read_results
from qam_lightning.util.errors import UserError
from tests.docs.pages import DOCS, blocks
from tests.reports.folders import make_run, read

SCORES = (0.1, 0.5, 0.6, 0.8, 0.9)  # 58% with Student's interval 19.3 to 96.7


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Return five seeds of QAM and of FQL on one task."""
    made = []
    for seed, score in enumerate(SCORES):
        for method, final in (("qam", score), ("fql", score / 2)):
            folder = tmp_path / "runs" / f"{method}-{seed}"
            made.append(make_run(folder, [0.0, 1.0, final], method=method, seed=seed))
    return made


def report(tmp_path: Path, runs: list[Path], **options: object) -> str:
    """Write a report and return its Markdown."""
    write_report(runs, tmp_path / "report", "Title", **options)  # type: ignore[arg-type]
    return (tmp_path / "report" / "report.md").read_text()


def cells(text: str, start: str) -> list[list[str]]:
    """Return the rows of the first table after a heading."""
    after = text[text.index(f"## {start}\n") :]
    lines = re.findall(r"^\| (.*) \|$", after.split("\n| ---", 1)[1].split("\n\n")[0], re.MULTILINE)
    return [line.split(" | ") for line in lines]


def test_success_is_the_last_evaluation_and_best_the_highest(tmp_path, runs):
    text = report(tmp_path, runs)
    assert cells(text, "Success after training") == [
        ["QAM", "58% (19–97)", "5"],
        ["FQL", "29% (10–48)", "5"],
    ]
    assert cells(text, "Best evaluation") == [
        ["QAM", "100% (100–100)†", "5"],
        ["FQL", "100% (100–100)†", "5"],
    ]
    row = next(r for r in read(tmp_path / "report/runs.csv") if r["folder"].endswith("qam-0"))
    assert (row["final"], row["final_step"]) == ("0.1", "3000")
    assert (row["best"], row["best_step"]) == ("1.0", "2000")


def test_the_probability_of_improvement_is_in_the_page(tmp_path, runs):
    wins = sum((x > y / 2) + (x == y / 2) / 2 for x in SCORES for y in SCORES) / 25
    text = report(tmp_path, runs)
    low, high = re.findall(rf"\| QAM \| – \| {wins:.2f} \((0\.\d\d)–(\d\.\d\d)\) \|", text)[0]
    back = f"{1 - wins:.2f} ({1 - float(high):.2f}–{1 - float(low):.2f})"
    assert f"| FQL | {back} | – |" in text and float(low) < wins < float(high)


def test_domains_are_means_over_tasks_and_all_of_all_tasks(tmp_path):
    runs = []
    for domain, finals in (("scene", (0.2, 0.4)), ("cube-double", (0.9,))):
        for task, final in enumerate(finals, 1):
            for seed in (0, 1):
                folder = tmp_path / f"{domain}-{task}-{seed}"
                score = final + 0.1 * seed
                runs.append(make_run(folder, [score], domain=domain, task=task, seed=seed))
    (row,) = cells(report(tmp_path, runs), "Success after training")
    assert row == ["QAM", "95% (90–100)†", "35% (30–40)†", "55% (50–60)†", "2"]


def test_offline_and_online_scores_and_regret(tmp_path):
    run = make_run(tmp_path / "run", [0.6, 0.2], [0.4, 0.8])
    text = report(tmp_path, [run])
    assert cells(text, "Success after the offline phase") == [["QAM", "20%†", "1"]]
    assert cells(text, "Success after the online phase") == [["QAM", "80%†", "1"]]
    # ((0.2 + 0.4) / 2 + (0.4 + 0.8) / 2) / 2 = 0.45
    assert cells(text, "Regret of the online phase") == [["QAM", "55%†", "1"]]
    result = read_result(run)
    assert result.regret == pytest.approx(0.55)
    assert result.offline == (0.2, 2000) and result.online == result.final == (0.8, 4000)


def test_runs_of_one_phase_each_are_scored_after_training(tmp_path):
    """RLPD, which learns online only, stands beside methods that were not fine-tuned."""
    offline = make_run(tmp_path / "qam", [0.6, 0.2])
    online = make_run(tmp_path / "rlpd", [], [0.4, 0.8], method="rlpd", max_steps=1_000_000)
    text = report(tmp_path, [offline, online])
    assert "phase" not in "".join(line for line in text.splitlines() if line.startswith("## Succ"))
    found = cells(text, "Success after training")
    assert found == [["QAM", "20%†", "1"], ["RLPD", "80%†", "1"]]


def test_a_run_in_its_online_phase_has_an_offline_score_only(tmp_path):
    result = read_result(make_run(tmp_path / "run", [0.6, 0.2], [0.4], env_steps=2000))
    assert result.offline == (0.2, 2000) and result.last == (0.4, 3000)
    assert not result.finished and result.total == 4000
    assert result.online is result.final is result.best is result.regret is None


def test_an_offline_phase_without_an_evaluation_at_its_end_has_no_score(tmp_path):
    """Older versions evaluated it only if its length was a multiple of the interval."""
    result = read_result(make_run(tmp_path / "run", [0.6], [0.4, 0.8], start=1500))
    assert result.offline is result.regret is None and result.online == (0.8, 3000)


def test_an_untrained_policy_is_no_result_of_an_offline_phase(tmp_path):
    run = make_run(tmp_path / "run", [0.1], [0.5, 0.7], start=0, method="rlpd", max_steps=1000)
    path = run / "metrics/eval.csv"
    path.write_text(path.read_text().replace("1000,0,offline", "0,0,offline"))
    facts = {"gradient_step": 2000, "versions": {}, "offline_steps": 0}
    (run / "checkpoints/last.json").write_text(json.dumps(facts))
    result = read_result(run)
    assert result.offline is None and result.regret == pytest.approx(1 - (0.3 + 0.6) / 2)


def test_regret_without_an_offline_phase_begins_at_the_first_evaluation(tmp_path):
    run = make_run(tmp_path / "run", [], [0.0, 0.5, 0.5], method="rlpd", max_steps=1_000_000)
    result = read_result(run)
    assert result.finished and result.offline is None
    assert result.regret == pytest.approx(1 - (0.25 + 0.5) / 2)
    single = make_run(tmp_path / "one", [], [0.5], method="rlpd", max_steps=1_000_000)
    assert read_result(single).regret is None


def test_cost_is_updates_over_speed_and_evaluations(tmp_path):
    result = read_result(make_run(tmp_path / "run", [0.1, 0.2, 0.3]))
    assert result.speed == 100.0
    assert result.hours == pytest.approx((3000 / 100 + 3 * 36) / 3600)


def test_every_number_can_be_traced(tmp_path, runs):
    report(tmp_path, runs)
    rows = read(tmp_path / "report/runs.csv")
    assert [row["folder"] for row in rows] == [str(r) for m in ("qam", "fql") for r in runs
                                               if m in r.name]  # fmt: skip
    assert {row["commit"] for row in rows} == {"0123abc"}
    assert rows[0]["version_torch"] == "2.13.0"
    assert rows[0]["config_hash"] != rows[1]["config_hash"]
    evaluations = read(tmp_path / "report/evaluations.csv")
    assert len(evaluations) == 3 * len(runs)
    assert [(e["step"], e["success"]) for e in evaluations[:3]] == [
        ("1000", "0.0"), ("2000", "1.0"), ("3000", "0.1"),
    ]  # fmt: skip


# -- what varies -----------------------------------------------------------------------------------


def test_a_setting_that_varies_makes_variants_and_a_curve(tmp_path):
    runs = [
        make_run(tmp_path / f"{tau}-{seed}", [0.1 * tau], seed=seed, model__tau=tau)
        for tau in (1.0, 3.0)
        for seed in (0, 1)
    ]
    text = report(tmp_path, runs)
    names = [row[0] for row in cells(text, "Success after training")]
    assert names == ["QAM, tau 1.0", "QAM, tau 3.0"]
    assert "## Sensitivity to model.tau" in text
    assert (tmp_path / "report/sensitivity.png").stat().st_size > 5_000
    same = [write_report(runs, tmp_path / n, "x", axes=a) for n, a in
            (("a", ["method", "seed", "model.init_args.tau"]), ("b", ["config"]))]  # fmt: skip
    assert (tmp_path / "a/report.md").read_text() == (tmp_path / "b/report.md").read_text()
    assert len(same[0]) == len(same[1])


def test_values_tuned_for_a_domain_make_no_variants(tmp_path):
    runs = [
        make_run(tmp_path / d, [0.5], domain=d, model__tau=tau, data__directory=f"/{d}")
        for d, tau in (("scene", 1.0), ("cube-double", 3.0))
    ]
    assert [row[0] for row in cells(report(tmp_path, runs), "Success after training")] == ["QAM"]


def test_a_seed_that_comes_twice_counts_once(tmp_path):
    runs = [make_run(tmp_path / name, [score]) for name, score in (("a", 0.2), ("b", 0.8))]
    text = report(tmp_path, [*runs, runs[0]])
    assert cells(text, "Success after training") == [["QAM", "20%†", "1"]]
    assert f"{runs[1]} is left out: {runs[0]} has the same method" in text.replace("\\", "")


def test_of_equal_runs_the_finished_one_counts(tmp_path):
    runs = [
        make_run(tmp_path / "begun", [0.2], max_steps=3000),
        make_run(tmp_path / "finished", [0.2, 0.5, 0.8]),
    ]
    text = report(tmp_path, runs)
    assert cells(text, "Success after training") == [["QAM", "80%†", "1"]]
    assert f"{runs[0]} is left out: {runs[1]} has the same method" in text.replace("\\", "")


def test_seeds_with_a_clone_of_their_own_are_one_variant(tmp_path):
    """Also where further settings are needed to tell runs apart."""
    runs = {
        seed: [
            make_run(
                tmp_path / f"{kind}{seed}",
                [0.5],
                seed=seed,
                model__integrator=kind,
                pretrained=f"runs/clones-10/seed{seed}",
            )
            for kind in ("shifted_euler", "denoiser")
        ]
        for seed in (0, 1, 10)
    }
    every, _ = read_results([run for pair in runs.values() for run in pair])
    for axes in (None, ["seed"]):
        found = compare(every, axes)
        labels = [variant.label for variant in found.variants]
        assert labels == ["QAM, integrator shifted_euler", "QAM, integrator denoiser"]
        assert [len(variant.results) for variant in found.variants] == [3, 3]


def test_seeds_that_share_a_clone_are_one_variant(tmp_path):
    """Also the seed whose number is in the clone's path."""
    runs = [
        make_run(tmp_path / f"{clone}{seed}", [0.5], seed=seed, pretrained=f"runs/bc-seed{clone}")
        for clone in (0, 1)
        for seed in range(3)
    ]
    found = compare(read_results(runs)[0])
    assert [len(variant.results) for variant in found.variants] == [3, 3]


def test_a_domain_without_a_finished_run_has_a_curve(tmp_path):
    done = make_run(tmp_path / "done", [0.2, 0.4])
    begun = make_run(tmp_path / "begun", [0.3], domain="scene", max_steps=3000)
    (variant,) = compare(read_results([done, begun])[0]).variants
    assert [[r.folder for r in shown(variant, d)] for d in ("cube-double", "scene")] == [
        [done],
        [begun],
    ]


def test_a_legend_of_long_names_fits_its_figure(tmp_path):
    runs = [
        make_run(tmp_path / f"{n}", [0.5], method="qam_edit", model__edit_scale=n, model__tau=n)
        for n in range(12)
    ]
    variants = compare(read_results(runs)[0]).variants
    figure = profiles([(variant, [[0.5], [0.6]]) for variant in variants])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) == 12
    assert box.x0 >= 0 and box.x1 <= whole.x1 and box.height < whole.height / 2


def test_settings_that_were_mixed_are_named(tmp_path):
    runs = [
        make_run(tmp_path / str(s), [0.5], seed=s, model__rho=0.1 * s, model__tau=1.0)
        for s in (0, 1)
    ]
    text = report(tmp_path, runs, axes=["seed"])
    assert "model.rho differs between runs that are averaged: 0.0, 0.1" in text


OLD_AND_NEW = {"old": {}, "new": {"model__integrator": "denoiser", "model__grid_power": 2.0}}


@pytest.mark.parametrize("first", [0, 2])
def test_a_run_that_is_older_than_a_setting_has_its_default(tmp_path, first):
    """Old runs have seeds 0 and 1, new ones the same or further seeds."""
    runs = [
        make_run(tmp_path / f"{age}{seed}", [0.5], seed=seed, **settings)
        for (age, settings), start in zip(OLD_AND_NEW.items(), (0, first), strict=True)
        for seed in (start, start + 1)
    ]
    text = report(tmp_path, runs)
    assert "left out" not in text
    assert cells(text.replace("\\", ""), "Success after training") == [
        ["QAM, integrator shifted_euler, grid_power 1.0", "50% (50–50)†", "2"],
        ["QAM, integrator denoiser, grid_power 2.0", "50% (50–50)†", "2"],
    ]
    rows = read(tmp_path / "report/runs.csv")
    assert [row["model.grid_power"] for row in rows] == ["1.0", "1.0", "2.0", "2.0"]


def test_an_older_run_is_averaged_with_newer_ones_of_default_settings(tmp_path):
    runs = [
        make_run(tmp_path / "old", [0.2], seed=0),
        make_run(tmp_path / "new", [0.4], seed=1, model__grid_power=1.0, online__utd_ratio=1),
    ]
    assert cells(report(tmp_path, runs), "Success after training") == [["QAM", "30% (20–40)†", "2"]]


def test_a_setting_without_a_known_default_tells_apart_who_has_it(tmp_path):
    """Of a method of one's own; a report does not import it."""
    runs = [
        make_run(tmp_path / f"{n}", [0.5], method="custom", seed=n, **changes)
        for n, changes in enumerate(({}, {"model__mine": 3}))
    ]
    for run in runs:
        path = run / "config.yaml"
        path.write_text(path.read_text().replace("qam_lightning.methods.qam.QAM", "my_own.Mine"))
    names = [row[0] for row in cells(report(tmp_path, runs), "Success after training")]
    assert names == ["Mine", "Mine, mine 3"]


# -- partial, damaged and foreign ------------------------------------------------------------------


def test_a_partial_study_has_a_partial_report(tmp_path):
    done = make_run(tmp_path / "a", [0.5, 0.7], task=1)
    half = make_run(tmp_path / "b", [0.6], task=2, max_steps=2000)
    text = report(tmp_path, [done, half], missing=["QAM, task 3, seed 0: never started"])
    assert "1 finished, 1 not yet" in text
    assert f"{half}: not finished; last evaluated at step 1,000 of 2,000, success 60%" in text
    assert "- QAM, task 3, seed 0: never started" in text
    assert cells(text, "Success after training") == [["QAM", "70%† 1/2 tasks", "1"]]
    row = next(r for r in read(tmp_path / "report/runs.csv") if r["folder"] == str(half))
    assert (row["finished"], row["final"], row["best"], row["last"]) == ("False", "", "", "0.6")


def test_runs_that_are_evaluated_once_have_no_curves(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", [0.5], seed=seed) for seed in range(2)]
    text = report(tmp_path, runs)
    assert "## Success after training" in text
    assert "## Learning curves" not in text and "## Best evaluation" not in text
    assert not (tmp_path / "report/curves.png").exists()


def test_a_study_in_which_nothing_is_finished_has_curves(tmp_path):
    half = make_run(tmp_path / "run", [0.6], max_steps=2000)
    text = report(tmp_path, [half])
    assert "No run is that far." in text and "No run is finished." in text
    assert (tmp_path / "report/curves.png").exists()
    assert not (tmp_path / "report/success.png").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", "a: [", "config.yaml: holds something else, expected a configuration, a"),
        ("config.yaml", "", "config.yaml: seed is missing"),
        ("config.yaml", "seed: 1\n", "config.yaml: method is missing"),
        ("config.yaml", b"\xff\xfe\x00", "config.yaml: is no text in UTF-8"),
        ("metrics/eval.csv", "no,csv\n1,2\n", "eval.csv, line 1: has no column"),
        ("metrics/eval.csv", "", "eval.csv: holds no evaluation yet"),
        ("metrics/train.csv", "gradient_step,steps_per_second\n1,x\n", "is 'x', expected a number"),
        ("config.yaml", None, "config.yaml: cannot be read"),
        ("metrics/eval.csv", None, "eval.csv: no such file"),
    ],
)
def test_a_damaged_run_is_named_and_the_others_stay(tmp_path, name, content, words):
    good, bad = (make_run(tmp_path / n, [0.5], seed=s) for s, n in enumerate(("good", "bad")))
    (bad / name).unlink()
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (bad / name).write_bytes(data)
    results, lines = read_results([good, bad])
    assert [r.folder for r in results] == [good]
    assert len(lines) == 1 and words in lines[0] and "\n" not in lines[0]
    assert words in report(tmp_path, [good, bad]).replace("\\", "")
    with pytest.raises(UserError, match="no run has results yet, of 1: "):
        write_report([bad], tmp_path / "other", "x")
    assert not (tmp_path / "other").exists()


def test_a_run_without_checkpoints_is_of_an_unknown_commit(tmp_path):
    runs = [make_run(tmp_path / "a", [0.5], versions=None), make_run(tmp_path / "b", [0.5], seed=1)]
    (tmp_path / "b/checkpoints/last.json").write_text("{")
    assert "| unknown | 2 |" in report(tmp_path, runs)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    good = make_run(tmp_path / "run", [0.5])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    for name, words in (("photos", "is no run"), ("nowhere", "is no folder")):
        with pytest.raises(UserError, match=f"{name}: {words}, expected a run's folder"):
            write_report([good, tmp_path / name], tmp_path / "report", "x")
    with pytest.raises(UserError, match="no run has results yet, of 0$"):
        write_report([], tmp_path / "report", "x")
    assert not (tmp_path / "report").exists()


# -- the folder of the report ----------------------------------------------------------------------


def test_a_report_replaces_an_earlier_one_whole(tmp_path, runs):
    varied = make_run(tmp_path / "more", [0.0, 1.0, 0.3], method="qam", model__rho=0.9)
    first = write_report([*runs, varied], tmp_path / "report", "x")
    assert {p.name for p in first} == {p.name for p in (tmp_path / "report").iterdir()} <= {*FILES}
    second = write_report(runs[:1], tmp_path / "report", "y")
    assert {p.name for p in second} == {p.name for p in (tmp_path / "report").iterdir()}
    assert "sensitivity.png" in {p.name for p in first} - {p.name for p in second}
    before = {path: path.read_bytes() for path in second}
    write_report(runs[:1], tmp_path / "report", "y")
    assert {path: path.read_bytes() for path in second} == before


def test_a_folder_with_other_files_is_refused(tmp_path, runs):
    target = tmp_path / "report"
    for prepare, words in (
        (lambda: target.write_text("mine"), "is a file"),
        (lambda: shutil.copytree(runs[0], target), "holds checkpoints"),
        (lambda: (target.mkdir(), (target / "index.html").write_text("my site")), "holds index"),
        (lambda: (target.mkdir(), (target / "runs.csv").mkdir()), "holds runs.csv"),
    ):
        prepare()
        before = {p: p.read_bytes() for p in [target, *target.rglob("*")] if p.is_file()}
        with pytest.raises(UserError, match=f"report: {words}") as caught:
            write_report(runs, target, "x")
        assert "\n" not in str(caught.value)
        assert {p: p.read_bytes() for p in [target, *target.rglob("*")] if p.is_file()} == before
        shutil.rmtree(target) if target.is_dir() else target.unlink()


# -- the page --------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags are closed in order; collects texts and what the page refers to."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.references += [value for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th", "h1", "h2", "li", "p", "figcaption"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.cells and "style" not in self.open:
            self.cells[-1] += data.strip("\n")


def parsed(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text("utf-8"))
    page.close()
    assert page.open == []
    return page


def test_the_page_needs_nothing_else_and_holds_what_the_markdown_does(tmp_path, runs):
    text = report(tmp_path, runs, published=True)
    page = parsed(tmp_path / "report/index.html")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert set(page.references) <= names
    assert {n for n in names if n.endswith(("png", "pdf", "csv"))} <= set(page.references)
    linked = re.sub(r"\[([\w.]+)\]\([\w.]+\)", r"\1", text)
    plain = " ".join(re.sub(r"\\(.)", r"\1", linked).split())
    assert [x for x in page.cells if " ".join(x.split()) not in plain] == []
    assert len(page.cells) > 60


def test_names_are_text_and_no_markup(tmp_path):
    run = make_run(tmp_path / "a<b>|_c_*", [0.5], model__note="<script>x</script>")
    make_run(tmp_path / "other", [0.5], model__note="y")
    name = 'T <img src="http://x"> & | `co`'
    write_report([run, tmp_path / "other"], tmp_path / "report", name, missing=["<i>lost</i>"])
    page = parsed(tmp_path / "report/index.html")
    assert name in page.cells and "<i>lost</i>" in page.cells
    assert "QAM, note <script>x</script>" in page.cells
    assert not [r for r in page.references if "//" in r]
    text = (tmp_path / "report/report.md").read_text()
    assert "# T \\<img" in text and not re.search(r"(?<!\\)<", text)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()
              if line.startswith("| QAM, note")}  # fmt: skip
    assert widths == {4, 6, 7}


def test_names_that_are_hard_to_write(tmp_path):
    folder = tmp_path / os.fsdecode(b"latin-\xe4")
    odd = {"model__note": "$x_{$ \n" + "y" * 500, "domain": "m$y$:_env\x07", "method": "custom"}
    runs = [make_run(tmp_path / "b", [0.5], **odd | {"task": 2})]
    runs.append(make_run(tmp_path / "a", [0.5], **odd).rename(folder))
    runs.append(make_run(tmp_path / "c", [0.5], **odd | {"model__note": [1, None]}))
    assert r"| QAM, note $x\_{$ \\nyyy" in report(tmp_path, runs)
    assert "latin-" in (tmp_path / "report/runs.csv").read_text("utf-8")


def test_the_example_of_the_guide_runs(tmp_path, runs, monkeypatch):
    (code,) = blocks(DOCS / "reports.md", "python")
    shutil.copytree(tmp_path / "runs", tmp_path / "guide" / "runs" / "my_study")
    monkeypatch.chdir(tmp_path / "guide")
    exec(compile(code, "reports.md", "exec"), {})
    assert "# My study" in Path("report/report.md").read_text()


# -- a real run ------------------------------------------------------------------------------------


def test_a_real_run_offline_and_online(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qam_lightning.checkpoints import read_checkpoint
    from qam_lightning.cli import main
    from qam_lightning.util.provenance import versions

    run = tmp_path / "run"
    assert main(arguments(evaluation__every_n_steps=2)) == 0
    result = read_result(run)
    rows = read(run / "metrics/eval.csv")
    assert result.finished and result.domain == "tests.online.tiny:Tiny-v0"
    assert result.last.success == float(rows[-1]["success"])
    assert result.last.step == result.total == 4 + 24
    assert result.offline is not None and result.offline.step == 4
    assert result.regret is not None and 0 <= result.regret <= 1
    entry = read_checkpoint(run / "checkpoints/last.ckpt")["qam_lightning"]
    assert result.config_hash == entry["config_hash"]
    assert result.versions == versions()
    text = report(tmp_path, [run], published=True)
    assert "config.yaml is not" not in text
    with (run / "config.yaml").open("a") as file:
        file.write("# mine\n")
    assert "run/config.yaml is not the last checkpoint's" in report(tmp_path, [run])
    assert "None of the finished runs has a published counterpart" in text
    assert json.loads((run / "checkpoints/last.json").read_text())["phase"] == "online"


def test_a_run_is_finished_after_its_last_update_here_and_in_status(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """44 updates; the last 20 of them follow the last environment step."""
    from qam_lightning.cli import main
    from qam_lightning.studies.state import state_of

    run = tmp_path / "run"
    changes = {"online__steps": 12, "online__utd_ratio": 20, "evaluation__every_n_steps": 35}
    assert main(arguments("--checkpoints.every_n_steps=35", **changes)) == 0
    assert read_result(run).finished and state_of(run).kind == "finished"
    for name in ("eval", "train"):  # what a kill after update 35 leaves
        path = run / f"metrics/{name}.csv"
        head, *rows = path.read_text().splitlines()
        kept = [row for row in rows if int(row.partition(",")[0]) <= 35]
        path.write_text("\n".join([head, *kept]) + "\n")
    for path in (run / "checkpoints").glob("last.*"):
        path.unlink()
    assert read(run / "metrics/eval.csv")[-1]["env_step"] == "12"
    assert state_of(run).kind == "stopped" and not read_result(run).finished


def test_a_folder_within_a_run_or_of_a_whole_study_is_refused(tmp_path, runs):
    for place in (runs[0] / "report", runs[1] / "videos" / "report"):  # of any run
        with pytest.raises(UserError, match="is within a run's folder"):
            write_report(runs[:1], place, "Title")
        assert not place.exists()
    with pytest.raises(UserError, match="runs: is no run, .*; name those in it$"):
        write_report([tmp_path / "runs"], tmp_path / "report", "Title")


@pytest.mark.filterwarnings("error")
def test_a_speed_that_is_none_has_no_cost(tmp_path, runs):
    for speed in ("inf", "nan", "1e999"):
        text = f"gradient_step,steps_per_second\n1,{speed}\n"
        (runs[0] / "metrics" / "train.csv").write_text(text)
        assert (read_result(runs[0]).speed, read_result(runs[0]).hours) == (None, None)
    report(tmp_path, runs)
