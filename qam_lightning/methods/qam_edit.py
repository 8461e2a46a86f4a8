"""QAM-EDIT: QAM with a Gaussian policy that edits the fine-tuned flow's actions (Eq. 30).

Citation
    The paper: Li, Levine, "Q-learning with adjoint matching", arXiv:2601.14234, 2026.
    Dong et al., "EXPO: stable reinforcement learning with expressive policies",
    arXiv:2507.07986, 2025.

Trained by what
    critic, f_β, f_θ    as in QAM, but a' is the edited action
    edit policy π_ω     -mean Q(s, clip(ã + σ_a Δa)) + c · log π_ω(Δa),
                        where ã = ODE(f_β + f_θ; s, z) and c is the entropy coefficient
    coefficient c       its log, towards entropy -D/2

Differences from the paper's text
    Eq. 30 leaves the entropy term to the reference on edit policies; it is written out here.
    σ_a = 0 is plain QAM, as in Table 4: there is then no edit policy.
    Eq. 30 writes ã + Δa: here Δa is a tanh-Gaussian's, its bound σ_a is written out, and the sum
    is clipped to the action box, as in Eq. 78.
    All differences of QAM apply here too.
"""

from typing import NamedTuple

from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.losses import edit_losses
from qam_lightning.methods.noise import EditNoise, NoiseSource
from qam_lightning.methods.qam import QAM, QAMNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.policies import EditPolicy, EntropyCoefficient


class QAMEditNoise(NamedTuple):
    """What QAM-EDIT's actor losses draw.

    Attributes:
        qam: QAM's draws.
        edited: the draws of the edited actions.
    """

    qam: QAMNoise
    edited: EditNoise


class QAMEdit(QAM):
    """QAM's flows, acting through an edit policy."""

    edit_scale: float = setting(at_least=0)
    """σ_a, the largest edit per action dimension; 0 is plain QAM."""

    def build(self) -> None:
        super().build()
        self.edit: EditPolicy | None = None
        if self.edit_scale > 0:
            sizes = self.spaces.obs_dim, self.dim, self.width, self.depth
            self.edit = EditPolicy(*sizes, scale=self.edit_scale)
            self.entropy_coefficient = EntropyCoefficient()

    def policy_noise(self, draw: NoiseSource) -> EditNoise:
        z = draw.normal(self.dim)
        return EditNoise(z, None if self.edit is None else draw.normal(self.dim))

    def actor_noise(self, draw: NoiseSource) -> QAMEditNoise:
        return QAMEditNoise(super().actor_noise(draw), self.policy_noise(draw))

    def actor_losses(self, batch: Batch, noise: QAMEditNoise) -> tuple[Losses, Metrics]:
        losses, metrics = super().actor_losses(batch, noise.qam)
        if self.edit is not None and noise.edited.edit is not None:
            s, coefficient = batch.observations, self.entropy_coefficient
            action = self.flow_action(s, noise.edited.z)
            losses |= edit_losses(self.edit, coefficient, self.critic, s, action, noise.edited.edit)
            metrics["actor/entropy_coefficient"] = coefficient().detach()
        return losses, metrics

    def policy(self, s: Tensor, noise: EditNoise) -> Tensor:
        action = self.flow_action(s, noise.z)
        if self.edit is None or noise.edit is None:
            return action
        return self.edit(s, action, noise.edit)[0]
