"""The plugin in the real LeRobot, with a tiny exported folder that lies beside this file.

``python make_tiny.py`` made the folder.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tiny_env
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors
from lerobot_policy_qam_lightning.modeling_qam_lightning import QAMLightningPolicy

from qam_lightning.runtime import ExportedPolicy

HERE = Path(__file__).parent
TINY = HERE / "tiny"
STATES = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))


def configured(*overrides: str, folder: Path = TINY) -> PreTrainedConfig:
    """Return the configuration as LeRobot's commands read it with ``--policy.path``."""
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=list(overrides))
    config.pretrained_path = folder
    return config


def made(*overrides: str, folder: Path = TINY) -> QAMLightningPolicy:
    """Return the policy as LeRobot's commands make it."""
    return make_policy(configured(*overrides, folder=folder), env_cfg=tiny_env.TinyEnvConfig())


def test_lerobot_finds_the_installed_plugin() -> None:
    """In a process of its own, which imports nothing of the plugin by itself."""
    code = (
        "from lerobot.utils.import_utils import register_third_party_plugins as register\n"
        "from lerobot.configs.policies import PreTrainedConfig\n"
        "register()\n"
        f"print(PreTrainedConfig.from_pretrained({str(TINY)!r}).type)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["qam_lightning"], done.stderr[-2000:]


def test_the_exported_folder_is_a_configuration() -> None:
    config = configured()
    assert config.type == "qam_lightning" and get_policy_class(config.type) is QAMLightningPolicy
    assert config.chunk_size == config.n_action_steps == 4
    assert config.input_features["observation.state"].shape == (3,)
    assert config.output_features["action"].shape == (2,)
    assert config.observation_delta_indices is None and config.action_delta_indices == [0, 1, 2, 3]
    assert configured("--n_action_steps=2", "--seed=7").n_action_steps == 2


def test_it_acts_as_the_runtime_does() -> None:
    policy, runtime = made("--seed=5"), ExportedPolicy(TINY, seed=5)
    for _ in range(2):  # episodes
        policy.reset()
        runtime.reset()
        for state in STATES:
            action = policy.select_action({"observation.state": state[None]})
            assert action.shape == (1, 2) and action.dtype == torch.float32
            np.testing.assert_array_equal(action[0], runtime.select_action(state.numpy()))


def test_it_loads_by_itself_and_ignores_a_datasets_statistics() -> None:
    policy = QAMLightningPolicy.from_pretrained(TINY, dataset_stats={"action": {}})
    batch = {"observation.state": STATES}
    assert torch.equal(policy.select_action(batch), made().select_action(batch))


def test_a_batch_of_chunks_is_executed_as_far_as_asked_for() -> None:
    policy, same = made("--n_action_steps=3"), made()
    batch = {"observation.state": STATES}
    chunks = [same.predict_action_chunk(batch) for _ in range(2)]
    assert chunks[0].shape == (5, 4, 2)
    found = [policy.select_action(batch) for _ in range(4)]
    expected = [*chunks[0][:, :3].unbind(1), chunks[1][:, 0]]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=0, atol=0)
    policy.reset()
    assert not torch.equal(policy.select_action(batch), chunks[1][:, 1])  # forgotten


def test_noise_may_be_given() -> None:
    policy, noise = made(), torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0))
    chunks = [
        policy.predict_action_chunk({"observation.state": STATES}, noise=noise) for _ in range(2)
    ]
    torch.testing.assert_close(*chunks, rtol=0, atol=0)


def test_observations_may_have_several_parts() -> None:
    config = configured()
    config.input_features = {
        "observation.state": PolicyFeature(FeatureType.STATE, (1,)),
        "observation.environment_state": PolicyFeature(FeatureType.ENV, (2,)),
    }
    batch = {
        "observation.state": STATES[:, :1],
        "observation.environment_state": STATES[:, 1:],
    }
    parts, whole = QAMLightningPolicy(config), made()
    found = parts.select_action(batch)
    expected = whole.select_action({"observation.state": STATES})
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_folders_processors_rename_and_leave_numbers_alone() -> None:
    config = configured()
    renamed = {"observation.environment_state": "observation.state"}
    before, after = make_pre_post_processors(
        config,
        pretrained_path=str(TINY),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {"rename_map": renamed},
        },
    )
    found = before({"observation.environment_state": STATES[0]})
    torch.testing.assert_close(found["observation.state"], STATES[:1], rtol=0, atol=0)
    torch.testing.assert_close(after(STATES), STATES, rtol=0, atol=0)


def test_processors_without_a_folder_are_those_of_the_folder(tmp_path: Path) -> None:
    for made_now in make_pre_post_processors(configured()):
        made_now.save_pretrained(tmp_path)
        name = f"{made_now.name}.json"
        assert json.loads((tmp_path / name).read_text()) == json.loads((TINY / name).read_text())


def test_it_acts_in_an_environment_of_lerobots_kind() -> None:
    policy, env = made(), gym.make_vec("tiny_env/reach", num_envs=3, vectorization_mode="sync")
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(TINY))
    policy.reset()
    observation, _ = env.reset(seed=0)
    for _ in range(tiny_env.EPISODE):
        with torch.inference_mode():
            action = after(policy.select_action(before(preprocess_observation(observation))))
        observation, _, done, _, _ = env.step(action.numpy())
    assert done.all()


def test_the_guides_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = HERE.parents[2] / "docs" / "lerobot.md"
    (block,) = re.findall(r"```python\n(.*?)```", guide.read_text("utf-8"), re.DOTALL)
    (tmp_path / "cube").symlink_to(TINY)
    monkeypatch.chdir(tmp_path)
    scope = {"observation": STATES}
    exec(block, scope)
    assert torch.equal(scope["action"], made().select_action({"observation.state": STATES}))


def test_lerobot_eval_runs_it(tmp_path: Path) -> None:
    """The real command, in a process of its own."""
    arguments = [
        f"--policy.path={TINY}", "--policy.n_action_steps=2", "--env.type=tiny",
        "--env.discover_packages_path=tiny_env", "--eval.n_episodes=4", "--eval.batch_size=2",
        f"--output_dir={tmp_path}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_eval", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stderr[-3000:]
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert info["overall"]["pc_success"] == 100.0 and info["overall"]["n_episodes"] == 4


@pytest.mark.parametrize(("steps", "found"), [(0, "is 0"), (5, "is 5")])
def test_more_or_fewer_actions_than_a_chunk_are_refused(steps: int, found: str) -> None:
    with pytest.raises(Exception, match="instantiate") as caught:
        configured(f"--n_action_steps={steps}")
    assert f"n_action_steps {found}, expected 1 to 4" in str(caught.value.__cause__)


def test_other_sizes_are_refused() -> None:
    config = configured()
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    with pytest.raises(ValueError, match=r"actions have shape \(2,\), those of the .* \(7,\)"):
        QAMLightningPolicy(config)
    config = configured()
    config.input_features = {"observation.state": PolicyFeature(FeatureType.STATE, (2,))}
    with pytest.raises(ValueError, match="observes 3 numbers, found input_features .*state.*2"):
        QAMLightningPolicy(config)


def test_a_batch_without_the_observation_is_refused() -> None:
    with pytest.raises(ValueError, match="observes observation.state, found observation.other"):
        made().select_action({"observation.other": STATES})


def test_a_changed_graph_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "copy"))
    (folder / "policy.onnx").write_bytes(b"other")
    with pytest.raises(Exception, match="is not the file that config.json names"):
        made(folder=folder)


def test_it_refuses_to_train_and_says_where_that_is_done() -> None:
    policy = made()
    for refused in (
        lambda: policy.forward({}),
        policy.get_optim_params,
        policy.config.get_optimizer_preset,
        policy.config.get_scheduler_preset,
    ):
        with pytest.raises(NotImplementedError, match="trained with qam_lightning and exported"):
            refused()
    with pytest.raises(ValueError, match="name the folder with --policy.path"):
        QAMLightningPolicy(get_policy_class("qam_lightning").config_class())
    with pytest.raises(NotImplementedError, match="copy the exported folder"):
        policy.save_pretrained("anywhere")
