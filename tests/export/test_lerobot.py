"""What LeRobot's plugin relies on; its own tests run where LeRobot is installed."""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from qam_lightning.export.check import verify
from qam_lightning.export.folder import Config
from qam_lightning.export.lerobot import PROCESSORS, TYPE
from qam_lightning.runtime import CONFIG
from tests.evaluation.conftest import CHUNK

PLUGIN = Path(__file__).parents[2] / "integrations" / "lerobot_policy_qam_lightning"
TINY = PLUGIN / "tests" / "tiny"
SOURCE = PLUGIN / "src" / PLUGIN.name


def test_the_plugin_knows_every_key_of_a_description() -> None:
    """LeRobot refuses a file with others."""
    tree = ast.parse((SOURCE / "configuration_qam_lightning.py").read_text())
    (kind,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    fields = {ast.unparse(x.target) for x in kind.body if isinstance(x, ast.AnnAssign)}
    assert set(Config.model_fields) - {"type"} <= fields
    assert f"register_subclass('{TYPE}')" in ast.unparse(kind.decorator_list[0])


def test_the_plugins_folder_is_one_of_today() -> None:
    """Otherwise ``make_tiny.py`` has to make it again."""
    assert verify(TINY, episodes=0).difference < 1e-5
    for name, steps in PROCESSORS.items():
        assert json.loads((TINY / f"{name}.json").read_text()) == {"name": name, "steps": steps}


@pytest.mark.skipif(not importlib.util.find_spec("lerobot"), reason="LeRobot is not installed")
def test_lerobot_reads_an_exported_folder(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SOURCE.parent))
    from lerobot.configs.policies import PreTrainedConfig  # type: ignore[import-not-found]

    importlib.import_module(PLUGIN.name)
    config = PreTrainedConfig.from_pretrained(exported)
    assert config.type == TYPE and config.spaces["horizon"] == CHUNK
    assert config.files == json.loads((exported / CONFIG).read_text())["files"]
    assert PLUGIN.name in sys.modules
