"""An exported folder: what is in it, that it acts as the run does, and what is refused."""

import hashlib
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from qam_lightning import UserError, load_policy
from qam_lightning.checkpoints import load_method, read_checkpoint
from qam_lightning.cli import main
from qam_lightning.export.card import score_of, with_latency
from qam_lightning.export.check import verify
from qam_lightning.export.folder import WEIGHTS
from qam_lightning.runtime import CONFIG, ONNX, ExportedPolicy
from tests.conftest import limited
from tests.docs.pages import DOCS, ROOT, blocks
from tests.evaluation.conftest import CHUNK

STATES = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
Copied = Callable[[], Path]


def described(folder: Path, **changes: Any) -> Path:
    """Change a folder's description, and let it name the files as they are."""
    config = json.loads((folder / CONFIG).read_text())
    for name in config["files"]:
        content = (folder / name).read_bytes()
        config["files"][name] = hashlib.sha256(content).hexdigest()
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))
    return folder


def test_it_holds_what_acting_needs_and_nothing_else(exported: Path, run: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert names == {
        *("README.md", "config.json", "learning_curve.png"),
        *("model.safetensors", "policy.onnx", "policy.pt2"),
        *("policy_preprocessor.json", "policy_postprocessor.json"),
    }
    weights = load_file(exported / WEIGHTS)
    assert {name.partition(".")[0] for name in weights} == {"behavior", "fine_tuned", "critic"}
    trained = load_policy(run).method.state_dict()
    assert all(torch.equal(x, trained[name]) for name, x in weights.items())
    onnx.checker.check_model(str(exported / ONNX), full_check=True)
    batch = onnx.load(exported / ONNX).graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param == "B"


def test_its_description_and_card_tell_where_it_is_from(exported: Path) -> None:
    config = json.loads((exported / CONFIG).read_text())
    assert config["method"] == "qam_lightning.methods.qam.QAM"
    assert config["environment"]["env"] == "pointmaze-medium"
    assert config["noise"] == {"candidates": 3, "draws": [2 * CHUNK]}
    assert config["training"]["gradient_step"] == 4
    assert config["control_period"] == pytest.approx(0.1)
    assert {"torch", "ogbench"} <= config["versions"].keys()
    card = (exported / "README.md").read_text()
    assert "QAM on pointmaze-medium, task 1" in card and "learning_curve.png" in card
    assert "| `tau` | 1.0 |" in card and "Not evaluated with these settings" in card
    assert "`eval.py RUN` with these settings (`--best_of_n 3`) makes a score" in card
    assert "In 1 episodes with equal noise, success was equal in each" in card


def test_the_card_has_the_best_known_score(run: Path, tmp_path: Path) -> None:
    """That of ``eval.py`` with the settings of the export, not one with others."""
    assert main(["eval", str(run), "--episodes=1", "--workers=0", "--num_envs=1"]) == 0
    assert (
        main(["eval", str(run), "--episodes=2", "--workers=0", "--num_envs=1", "--best_of_n=2"])
        == 0
    )
    load_policy(run).export(tmp_path / "export", formats=())
    score = json.loads((tmp_path / "export" / CONFIG).read_text())["score"]
    assert score["episodes"] == 1 and score["source"] == "eval.py, 1 episodes, seed 1"
    assert score["low"] <= score["mean"] <= score["high"]
    assert "there is no ONNX graph to compare" in (tmp_path / "export" / "README.md").read_text()


@pytest.mark.parametrize(
    ("rates", "expected"),
    [((0.2, 0.5, 0.3), None), ((0.2, 0.3, 0.5), 0.3), ((0.2, 0.5), 0.5), ((0.6, 0.5), 0.5)],
)
def test_a_score_did_not_choose_its_checkpoint(
    run: Path, tmp_path: Path, rates: tuple[float, ...], expected: float | None
) -> None:
    """The tiny policy after step 4, with made-up evaluations of every second step."""
    method, metadata = load_method(run / "checkpoints" / "last.ckpt")
    metadata["config"] = "evaluation: {episodes: 10, seed: 0}"
    rows = [f"{2 * n},0,{rate}\n" for n, rate in enumerate(rates, 1)]
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/eval.csv").write_text("gradient_step,env_step,success\n" + "".join(rows))
    found = score_of(tmp_path, metadata, method)
    assert (found and found.mean) == expected
    (tmp_path / "eval").mkdir()
    success = {"mean": 0.4, "low": 0.2, "high": 0.6}
    report = {**metadata, **metadata["environment"], "policy": "learned", "success": success}
    for seed, scored in ((0, expected and 0.4), (1, 0.4)):  # seed 0: training's episodes
        content = {**report, "seed": seed, "episodes": 20}
        (tmp_path / "eval" / f"{seed}.json").write_text(json.dumps(content, default=str))
        found = score_of(tmp_path, metadata, method)
        assert (found and found.mean) == scored


def test_a_policy_loads_from_it_and_acts_alike(exported: Path, run: Path) -> None:
    trained, loaded = load_policy(run, best_of_n=3, seed=5), load_policy(exported, seed=5)
    for policy in (trained, loaded):
        policy.reset()
    for state in STATES:
        np.testing.assert_array_equal(loaded.sample_chunk(state), trained.sample_chunk(state))
    assert loaded.metadata["environment"] == trained.metadata["environment"]
    assert load_policy(exported, flow_steps=2).method.flow_steps == 2
    assert all(x.isnan().all() for x in loaded.method.critic_ema.parameters())  # not in the folder


def test_eval_rolls_it_out_as_the_run(exported: Path, run: Path, tmp_path: Path) -> None:
    results = []
    for number, source in enumerate((run, exported)):
        report = tmp_path / f"{number}.json"
        arguments = [
            "--best_of_n=3",
            "--episodes=1",
            "--workers=0",
            "--num_envs=1",
            f"--output={report}",
        ]
        assert main(["eval", str(source), *arguments]) == 0
        results.append(json.loads(report.read_text())["results"])
    assert results[0] == results[1]


def test_the_runtime_acts_as_the_policy_with_the_same_seed(exported: Path, run: Path) -> None:
    policy, runtime = load_policy(run, best_of_n=3, seed=5), ExportedPolicy(exported, seed=5)
    for _ in range(3):  # episodes
        policy.reset()
        runtime.reset()
        for state in (*STATES, *STATES):  # two chunks
            action = runtime.select_action(state)
            np.testing.assert_allclose(action, policy(state), rtol=0, atol=1e-4)
    fresh = ExportedPolicy(exported, seed=5)
    first = fresh.select_action(STATES[0])  # without `reset`
    fresh.reset()  # the second episode, in the middle of a chunk
    assert not np.array_equal(fresh.select_action(STATES[0]), first)
    runtime.reset(seed=5)
    np.testing.assert_array_equal(runtime.select_action(STATES[0]), first)


def test_the_runtime_executes_as_much_of_a_chunk_as_asked_for(exported: Path) -> None:
    again = ExportedPolicy(exported)
    chunks = [again.predict_action_chunk(state) for state in STATES[:2]]
    whole, first = ExportedPolicy(exported), ExportedPolicy(exported, execute=1)
    found = [whole.select_action(STATES[0]) for _ in range(CHUNK)]
    np.testing.assert_array_equal(found, chunks[0])
    found = [first.select_action(s) for s in STATES[:2]]
    np.testing.assert_array_equal(found, [chunk[0] for chunk in chunks])


def test_the_runtime_takes_a_batch_and_noise(exported: Path) -> None:
    runtime = ExportedPolicy(exported)
    noise = np.random.default_rng(1).standard_normal((8, *runtime.noise_shape))
    chunks = runtime.predict_action_chunk(STATES, noise)
    assert chunks.shape == (8, CHUNK, 2)
    one = runtime.predict_action_chunk(STATES[3], noise[3])
    np.testing.assert_allclose(one, chunks[3], rtol=0, atol=1e-6)
    assert runtime.predict_action_chunk(STATES).shape == (8, CHUNK, 2)


WITHOUT_TORCH = """
import sys

class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names | {"numpy", "onnxruntime", "qam_lightning"}:
            raise ImportError(name)

sys.meta_path.insert(0, Only())
import numpy as np
from qam_lightning.runtime import ExportedPolicy

policy = ExportedPolicy(sys.argv[1], seed=5)
print([policy.select_action(np.full(2, 0.1 * n)).tolist() for n in range(4)])
"""


def test_the_runtime_needs_numpy_and_onnxruntime_alone(exported: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    policy = load_policy(exported, seed=5)
    expected = [policy(np.full(2, 0.1 * n)) for n in range(4)]
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=0, atol=1e-4)


def test_the_guides_code_runs(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cube").symlink_to(exported)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for block in blocks(DOCS / "export.md", "python"):
        exec(block, scope)
    assert scope["action"].shape == (2,)
    (shown,) = (b for b in blocks(ROOT / "README.md", "python") if "ExportedPolicy" in b)
    seen: dict[str, Any] = {"observation": np.zeros(2)}
    exec(shown, seen)
    assert seen["action"].shape == (2,)


def test_the_program_of_torch_acts_alike(exported: Path) -> None:
    runtime = ExportedPolicy(exported)
    noise = np.random.default_rng(1).standard_normal((8, *runtime.noise_shape), np.float32)
    program = torch.export.load(exported / "policy.pt2").module()
    found = program(torch.from_numpy(STATES), torch.from_numpy(noise))
    expected = runtime.predict_action_chunk(STATES, noise)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_command_exports_and_verifies(export: tuple[Path, str], run: Path, capsys: Any) -> None:
    folder, said = export
    assert "success is equal in each of 1 episodes" in said
    assert main(["export", f"--verify={folder}", "--episodes=0"]) == 0
    assert re.match(r"actions differ by at most [\d.e-]+; no episodes", capsys.readouterr().out)
    assert main(["export", str(run), f"--output={folder}"]) == 2
    assert f"--output is {folder}, which exists" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failed_export_leaves_nothing(run: Path, tmp_path: Path) -> None:
    policy = load_policy(run)
    next(policy.method.behavior.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match="its actions differ from the policy's by nan"):
        policy.export(tmp_path / "export", episodes=0)
    assert not list(tmp_path.iterdir())


def test_another_graph_is_found_out(copied: Copied) -> None:
    folder = copied()
    weights = load_file(folder / WEIGHTS)
    weights["behavior.mlp.layers.1.bias"] += 1e-3
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"its actions differ from the policy's by .+, expected at"):
        verify(described(folder), episodes=0)


@pytest.mark.parametrize("name", [ONNX, WEIGHTS, "policy.pt2", "learning_curve.png"])
def test_files_that_do_not_belong_together(name: str, copied: Copied) -> None:
    folder = copied()
    (folder / name).write_bytes((folder / name).read_bytes() + b"\0")
    with pytest.raises(UserError, match=f"{name}: is not the file that config.json names"):
        verify(folder, episodes=0)
    if name == ONNX:
        with pytest.raises(UserError, match="is not the file that config.json names"):
            ExportedPolicy(folder)
    if name == WEIGHTS:
        with pytest.raises(UserError, match="do not belong together"):
            load_policy(folder)


class Exploit:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a pickle was read')",)


def test_a_pickle_is_never_read(copied: Copied) -> None:
    folder = copied()
    for name in (WEIGHTS, ONNX, "policy.pt2"):
        (folder / name).write_bytes(pickle.dumps(Exploit()))
    described(folder)
    with pytest.raises(UserError, match="is no safetensors file"):
        load_policy(folder)
    with pytest.raises(UserError, match="onnxruntime cannot load it"):
        ExportedPolicy(folder)
    with pytest.raises(UserError, match="is no safetensors file"):
        verify(folder, episodes=0)


SETTINGS: dict[str, Any] = {
    "spaces": {"obs_dim": 2, "action_dim": 2, "horizon": CHUNK},
    "tau": 1.0,
    "best_of_n": 3,
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "format is 2, expected 1"),
        ({"method": "os.system"}, "os.system"),
        ({"method": "antigravity.QAM"}, "is not imported"),
        ({"settings": {**SETTINGS, "width": 10**9}}, "width is 1000000000"),
        ({"settings": {**SETTINGS, "width": 16}}, "has shape .*, expected"),
        ({"settings": {**SETTINGS, "other": 1}}, "other"),
        ({"files": {"../x": "0" * 64}}, "expected the name of a file in the folder"),
        ({"noise": {"candidates": "3", "draws": [2 * CHUNK]}}, "noise.candidates is '3'"),
        ({"noise": {"candidates": 10**12, "draws": [2 * CHUNK]}}, "tell of other sizes"),
        ({"spaces": {**SETTINGS["spaces"], "horizon": 4}}, "tell of other sizes"),
        ({"training": {}}, "training.gradient_step is missing"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_hostile_description(changes: dict[str, Any], reason: str, copied: Copied) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        load_policy(described(copied(), **changes))
    assert "\n" not in str(refused.value)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "spaces": {"x": 1}}', "[" * 10**5],
)
def test_the_runtime_refuses_other_descriptions(text: str, copied: Copied) -> None:
    folder = copied()
    (folder / CONFIG).write_text(text)
    with pytest.raises(UserError, match=r"config.json: is (of format 2|no description)"):
        ExportedPolicy(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": {"candidates": 3, "draws": [5]}},
        {"spaces": {"obs_dim": 2, "action_dim": 2, "horizon": CHUNK + 1}},
        {"spaces": {"obs_dim": 2, "action_dim": 1, "horizon": CHUNK}},
    ],
)
def test_a_description_of_another_size(changes: dict[str, Any], copied: Copied) -> None:
    folder = described(copied(), **changes)
    with pytest.raises(UserError, match=r"policy.onnx and config.json tell of other sizes"):
        ExportedPolicy(folder)


def test_an_environment_imports_nothing(copied: Copied) -> None:
    place = {"env": "antigravity:Env-v0", "dataset": "", "task": 1, "sparse": False}
    with pytest.raises(UserError, match="antigravity is not imported"):
        verify(described(copied(), environment=place), episodes=1)
    assert "antigravity" not in sys.modules


def test_arguments_of_the_runtime(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        ExportedPolicy(tmp_path)
    for wrong, reason in (
        ({"execute": CHUNK + 1}, f"execute is {CHUNK + 1}, expected 1 to {CHUNK}"),
        ({"seed": -1}, "seed is -1"),
        ({"threads": 0}, "threads is 0"),
    ):
        with pytest.raises(UserError, match=reason):
            ExportedPolicy(exported, **wrong)
    policy = ExportedPolicy(exported)
    with pytest.raises(UserError, match=r"the shape of observation is \(3,\), expected \(2,\)"):
        policy.predict_action_chunk(np.zeros(3))
    with pytest.raises(UserError, match=r"the shape of observation is \(1, 2\), expected \(2,\)"):
        policy.select_action(np.zeros((1, 2)))
    with pytest.raises(UserError, match=r"the shape of noise is \(2,\), expected \(3, 20\)"):
        policy.predict_action_chunk(np.zeros(2), np.zeros(2))
    with pytest.raises(UserError, match=r"observation is \[nan  ?0\.\], expected finite numbers"):
        policy.select_action(np.array([np.nan, 0]))


def test_a_full_disk_leaves_nothing(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "export"
    with limited(300), pytest.raises(UserError, match="export: cannot be written: File too large"):
        load_policy(run).export(output, formats=())
    assert not list(tmp_path.iterdir())


def test_what_the_folder_lacks_cannot_act(run: Path, tmp_path: Path) -> None:
    load_policy(run).export(tmp_path / "export", formats=())
    with pytest.raises(UserError, match=r"lacks critic\..+, which best_of_n reads"):
        load_policy(tmp_path / "export", best_of_n=2)


@pytest.mark.parametrize("package", ["safetensors", "onnxscript", "onnxruntime"])
def test_without_the_extra_one_line_says_what_to_install(
    package: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=rf"{package}, which is not installed; pip install '.+\[exp"
    ):
        load_policy(run).export(tmp_path / "export", episodes=0)
    assert not list(tmp_path.iterdir())


def test_a_policy_with_a_temperature_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="temperature is set"):
        load_policy(run, temperature=0.5).export(tmp_path / "export")


def test_a_run_that_is_not_finished_is_refused(run: Path, tmp_path: Path, capsys: Any) -> None:
    folder, output = tmp_path / "run", f"--output={tmp_path / 'export'}"
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    checkpoint["qam_lightning"]["config"] = "trainer: {max_steps: 8}"
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    assert main(["export", str(folder), output]) == 2
    told = capsys.readouterr().err
    assert "the run is not finished (it has taken 4 gradient steps)" in told
    for nothing in (tmp_path, tmp_path / "missing"):
        assert main(["export", str(nothing), output]) == 2
        assert "no such checkpoint file" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--best_of_n=1000000000", "--episodes=999999999999999"])
def test_what_memory_cannot_hold_is_refused(
    flag: str, run: Path, tmp_path: Path, capsys: Any
) -> None:
    source = str(run / "checkpoints" / "last.ckpt")
    assert main(["export", source, f"--output={tmp_path / 'export'}", flag]) == 2
    told = capsys.readouterr().err
    assert f"error: {flag.replace('=', ' is ')}: " in told and "GB for this process" in told
    assert not list(tmp_path.iterdir())
    if "best" in flag:
        assert main(["eval", str(run), "--latency=1", flag]) == 2
        with pytest.raises(UserError, match="acting in 11 states at once would take"):
            load_policy(run).export(tmp_path / "export", formats=())
            load_policy(tmp_path / "export", best_of_n=10**9)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["run"],
        ["--verify=x", "--output=y"],
        ["--verify=x", "--best_of_n=2"],
        ["--verify=x", "--formats", "pt2"],
        ["--verify=x", "--checkpoint=best"],
    ],
)
def test_arguments_that_do_not_go_together(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", *arguments])
    assert capsys.readouterr().err.startswith("error: ")


def test_latency_goes_into_the_card(copied: Copied, no_compiler: None, capsys: Any) -> None:
    folder = copied()
    for calls in ("3", "4"):
        assert main(["eval", str(folder), "--latency", calls]) == 0
    told = capsys.readouterr()
    assert "left out: compiled: acting: compile needs a C++ compiler" in told.err
    card = (folder / "README.md").read_text()
    assert card.count("## Latency") == 1 and "over 4 calls" in card and "is 100 ms" in card
    assert len(re.findall(r"^\| (eager|ONNX) \| [12] \|", card, re.MULTILINE)) == 4
    verify(folder, episodes=0)  # a card may be edited


@pytest.mark.slow
def test_latency_of_a_run(run: Path, no_compiler: None) -> None:
    assert main(["eval", str(run), "--latency=3", "--best_of_n=2"]) == 0
    assert "| ONNX | 2 |" in (run / "eval" / "latency.md").read_text()


def test_latency_of_a_folder_without_a_graph(
    run: Path, tmp_path: Path, no_compiler: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    load_policy(run).export(tmp_path / "export", formats=())
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # a graph for the moment takes seconds
    assert main(["eval", str(tmp_path / "export"), "--latency=2"]) == 0
    assert "left out: ONNX: exported policies need onnxscript" in capsys.readouterr().err


def test_a_card_keeps_what_follows_the_latency(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("# Title\n\n## Latency\n\nold\n\n## Mine\n\ntext\n")
    with_latency(tmp_path, "new")
    assert card.read_text() == "# Title\n\n## Latency\n\nnew\n\n## Mine\n\ntext\n"


def test_latency_goes_with_no_rollouts(run: Path, capsys: Any) -> None:
    more = ("--task=2", "--temperature=0.5", "--device=cuda", "--compile")
    for other in ("--video", "--best_of_n=1 --best_of_n=2", "--policy=behavior", *more):
        with pytest.raises(SystemExit, match="2"):
            main(["eval", str(run), "--latency", *other.split()])
        assert "--latency: does not go together with" in capsys.readouterr().err


def test_an_exported_folder_is_not_exported_again(
    exported: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(["export", str(exported), f"--output={tmp_path / 'export'}"]) == 2
    assert "an exported folder already" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()
