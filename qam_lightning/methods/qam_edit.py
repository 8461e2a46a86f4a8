"""QAM-EDIT: QAM with a Gaussian policy that edits the fine-tuned flow's actions (Eq. 30).

Citation
    The paper: Li, Levine, "Q-learning with adjoint matching", arXiv:2601.14234, 2026.
    Dong et al., "EXPO: stable reinforcement learning with expressive policies",
    arXiv:2507.07986, 2025.

Trained by what
    critic, f_β, f_θ    as in QAM, but a' is the edited action
    edit policy π_ω     -mean Q(s, clip(ã + σ_a Δa)) + ent_coef · log π(Δa),
                        where ã = ODE(f_β + f_θ; s, z)
    entropy coefficient its log, towards entropy -D/2

Differences from the paper's text
    Eq. 30 leaves the entropy term to the reference on edit policies; it is written out here.
    σ_a = 0 is plain QAM, as in Table 4: there is then no edit policy.
    Eq. 30 writes ã + Δa: here Δa is a tanh-Gaussian's, its bound σ_a is written out, and the sum
    is clipped to the action box, as in Eq. 78.
    What differs in QAM differs here.
"""

from typing import Any

from torch import Tensor

from qam_lightning.core.draws import Draw
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.flow_pair import FlowPair
from qam_lightning.nets.heads import EditPolicy
from qam_lightning.util.errors import require


class QAMEdit(Method):
    """QAM's flows, acting through an edit policy.

    Args:
        tau: inverse temperature τ >= 0 of the flow's tilt.
        edit_scale: σ_a >= 0, the largest edit per action dimension; 0 is plain QAM.
        residual: whether f_θ is a residual on f_β (the paper's choice) or the full velocity.
        shared: what every method takes.
    """

    actor: FlowPair

    def __init__(self, tau: float, edit_scale: float, residual: bool, **shared: Any) -> None:
        """Build the flows and, for σ_a > 0, the edit policy."""
        super().__init__(**shared)
        finite = 0 <= edit_scale < float("inf")
        require(finite, type(self), "edit_scale", edit_scale, "at least 0 and finite")
        self.actor = FlowPair(*self.sizes, self.flow_steps, tau, residual)
        self.edit = EditPolicy(*self.sizes, edit_scale) if edit_scale > 0 else None

    def policy_draws(self) -> dict[str, Draw]:
        """The flow's z and the edit's noise."""
        names = ("z", "edit") if self.edit else ("z",)
        return {name: Draw((self.dim,)) for name in names}

    def actor_draws(self) -> dict[str, Draw]:
        """The flows' draws and those of the edited actions."""
        edited = self.policy_draws() if self.edit else {}
        return {**super().actor_draws(), **{f"edited/{name}": d for name, d in edited.items()}}

    def policy(self, s: Tensor, noise: Noise) -> Tensor:
        """Return clip(ã + σ_a Δa) with ã = clip ODE(f_β + f_θ; s, z)."""
        action = self.actor.act(s, noise["z"])
        return action if self.edit is None else self.edit(s, action, noise["edit"])[0]

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """QAM's losses and the edit policy's (Eq. 30)."""
        losses, metrics = self.actor.matching_losses(batch, noise, self.critic_ema)
        if self.edit is not None:
            s = batch.observations
            action = self.actor.act(s, noise["edited/z"])
            losses |= self.edit.losses(self.critic, s, action, noise["edited/edit"])
            metrics["actor/entropy_coefficient"] = self.edit.entropy_coefficient().detach()
        return losses, metrics
