"""FEdit: a Gaussian policy that edits the actions of a cloned flow (Eq. 77-79).

Citation
    Dong et al., "EXPO: stable reinforcement learning with expressive policies",
    arXiv:2507.07986, 2025, whose edit policy it puts on a flow.

Trained by what
    critic Q_φ          TD with pessimistic EMA backup (Eq. 26, 79), a' = the edited action
    behaviour v_β       flow matching on dataset chunks (Eq. 17)
    edit policy π_ω     -mean Q(s, clip(ã + σ_a Δa)) + c · log π_ω(Δa) (Eq. 78),
                        where ã = ODE(v_β; s, z) and c is the entropy coefficient
    coefficient c       its log, towards entropy -D/2 (Eq. 77)

Differences from the paper's text
    The entropy bound of Eq. 77 is written out as the term and the coefficient that enforce it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.flow import FlowMethod
from qam_lightning.methods.losses import edit_losses
from qam_lightning.methods.noise import CloningNoise, EditNoise, NoiseSource
from qam_lightning.methods.settings import setting
from qam_lightning.nets.policies import EditPolicy, EntropyCoefficient


class FEditNoise(NamedTuple):
    """What FEdit's actor losses draw.

    Attributes:
        cloning: x_0 and u of flow matching; None where the behaviour flow is frozen.
        edited: the draws of the edited actions.
    """

    cloning: CloningNoise | None
    edited: EditNoise


class FEdit(FlowMethod):
    """A cloned flow, acting through an edit policy."""

    edit_scale: float = setting(above=0)
    """σ_a, the largest edit per action dimension."""

    def build(self) -> None:
        super().build()
        self.behavior = self.velocity_field()
        sizes = self.spaces.obs_dim, self.dim, self.width, self.depth
        self.edit = EditPolicy(*sizes, scale=self.edit_scale)
        self.entropy_coefficient = EntropyCoefficient()

    def policy_noise(self, draw: NoiseSource) -> EditNoise:
        return EditNoise(z=draw.normal(self.dim), edit=draw.normal(self.dim))

    def actor_noise(self, draw: NoiseSource) -> FEditNoise:
        cloning = self.behavior_noise(draw)
        return FEditNoise(cloning, self.policy_noise(draw))

    def actor_losses(self, batch: Batch, noise: FEditNoise) -> tuple[Losses, Metrics]:
        s = batch.observations
        field, coefficient = self.behavior.at(s), self.entropy_coefficient
        with torch.no_grad():
            action = self.sample(field, noise.edited.z)
        assert noise.edited.edit is not None
        losses = {
            **self.behavior_losses(field, batch, noise.cloning),
            **edit_losses(self.edit, coefficient, self.critic, s, action, noise.edited.edit),
        }
        return losses, {"actor/entropy_coefficient": coefficient().detach()}

    def policy(self, s: Tensor, noise: EditNoise) -> Tensor:
        return self.edit(s, self.behavior_policy(s, noise), noise.edit)[0]

    def behavior_policy(self, s: Tensor, noise: EditNoise) -> Tensor:
        return self.sample(self.behavior.at(s), noise.z)
