"""What methods with a flow have in common: how its ODE is integrated."""

from typing import ClassVar

from torch import Tensor

from qam_lightning.core.flow import Field, Sampler, sample_action
from qam_lightning.methods.base import Method
from qam_lightning.methods.settings import setting


class FlowMethod(Method):
    """A method whose actions come from a flow, or are learned from a flow's actions.

    The sampler and the grid hold wherever the flow is followed: where it acts, for the next action
    in the TD target, and for the actions that a one-step or an edit policy learns from.
    """

    sampler: Sampler = "euler"
    """How the flow's ODE is integrated: "euler", or of second order "ab2", which extrapolates the
    velocity, or "etd2", which extrapolates the denoised action (not in the paper). All evaluate the
    flow T times."""
    grid_power: float = setting(default=1.0, at_least=1, at_most=3)
    """p of the flow times u_i = 1 - (1 - i / T)^p: 1 is uniform, and above it the steps are shorter
    near the action (not in the paper)."""

    acting_settings: ClassVar[tuple[str, ...]] = (*Method.behavior_settings, "sampler")
    behavior_settings = acting_settings

    def sample(self, v: Field, z: Tensor) -> Tensor:
        """Return clip(ODE(v; z)), (B, D) in [-1, 1], from noise z (B, D)."""
        return sample_action(v, z, self.flow_steps, self.sampler, self.grid_power)
