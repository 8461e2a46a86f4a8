"""Export the tiny policy of these tests again: ``python make_tiny.py``, where qam_lightning is."""

import shutil
from pathlib import Path

import torch

from qam_lightning.data.spaces import Spaces
from qam_lightning.export.write import export
from qam_lightning.methods.fql import FQL
from qam_lightning.util.provenance import versions

FOLDER = Path(__file__).parent / "tiny"

torch.manual_seed(0)
method = FQL(
    Spaces(obs_dim=3, action_dim=2, horizon=4),
    alpha=10.0, width=8, depth=1, num_critics=2, flow_steps=2, best_of_n=2, standardize=True,
)  # fmt: skip
method.obs_norm.fit(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]))
metadata = {
    **{"environment": {}, "versions": versions()},
    **{"gradient_step": 0, "env_step": 0, "phase": "offline"},
}
shutil.rmtree(FOLDER, ignore_errors=True)
export(method, metadata, FOLDER)
