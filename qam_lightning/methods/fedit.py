"""FEdit: a Gaussian policy that edits the actions of a cloned flow (Eq. 77-79).

Citation
    Dong et al., "EXPO: stable reinforcement learning with expressive policies",
    arXiv:2507.07986, 2025, whose edit policy it puts on a flow.

Trained by what
    critic Q_φ          TD with pessimistic EMA backup (Eq. 26, 79), a' = the edited action
    behaviour v_β       flow matching on dataset chunks (Eq. 17)
    edit policy π_ω     -mean Q(s, clip(ã + σ_a Δa)) + ent_coef · log π(Δa), ã = ODE(v_β; s, z)
                        (Eq. 78)
    entropy coefficient its log, towards entropy -D/2 (Eq. 77)

Differences from the paper's text
    The entropy bound of Eq. 77 is written out as the term and the coefficient that enforce it.
"""

from typing import Any

from torch import Tensor

from qam_lightning.core.draws import Draw
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.flow_policy import ClonedFlow
from qam_lightning.nets.heads import EditPolicy
from qam_lightning.util.errors import require


class FEdit(Method):
    """A cloned flow, acting through an edit policy.

    Args:
        edit_scale: σ_a > 0, the largest edit per action dimension.
        shared: what every method takes.
    """

    actor: ClonedFlow

    def __init__(self, edit_scale: float, **shared: Any) -> None:
        """Build the flow and the edit policy."""
        super().__init__(**shared)
        finite = 0 < edit_scale < float("inf")
        require(finite, type(self), "edit_scale", edit_scale, "above 0 and finite")
        self.actor = ClonedFlow(*self.sizes, self.flow_steps)
        self.edit = EditPolicy(*self.sizes, edit_scale)

    def policy_draws(self) -> dict[str, Draw]:
        """The flow's z and the edit's noise."""
        return {"z": Draw((self.dim,)), "edit": Draw((self.dim,))}

    def actor_draws(self) -> dict[str, Draw]:
        """The cloning loss's draws and those of the edited actions."""
        edited = {f"edited/{name}": draw for name, draw in self.policy_draws().items()}
        return {**super().actor_draws(), **edited}

    def policy(self, s: Tensor, noise: Noise) -> Tensor:
        """Return clip(ã + σ_a Δa) with ã = clip ODE(v_β; s, z)."""
        return self.edit(s, self.actor.act(s, noise["z"]), noise["edit"])[0]

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Flow matching for v_β (Eq. 17) and the edit policy's losses (Eq. 77-78)."""
        s = batch.observations
        action = self.actor.act(s, noise["edited/z"])
        losses = {
            "actor/flow_loss": self.actor.cloning_loss(batch, noise),
            **self.edit.losses(self.critic, s, action, noise["edited/edit"]),
        }
        return losses, {"actor/entropy_coefficient": self.edit.entropy_coefficient().detach()}
