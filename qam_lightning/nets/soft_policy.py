"""A Gaussian policy whose entropy is held at a target by a learned coefficient: RLPD's, DSRL's."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qam_lightning.core.draws import Draw
from qam_lightning.nets.heads import SoftGaussian


class SoftPolicy(SoftGaussian):
    """π(a | s): soft actor-critic's tanh-Gaussian at states (Eq. 80)."""

    @torch.no_grad()
    def act(self, s: Tensor, z: Tensor) -> Tensor:
        """Return a sample in [-1, 1], (B, D), at states (B, O) from normal z (B, D)."""
        return self.gaussian(s, z)[0]

    def draws(self) -> dict[str, Draw]:
        """Name what the losses take per sample: the noise of the policy's sample."""
        return {"policy/z": Draw((self.dim,))}

    def losses(
        self, s: Tensor, noise: Mapping[str, Tensor], value: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the value, entropy and entropy-coefficient losses and metrics, all scalars.

        Args:
            s: (B, O).
            noise: the quantities of :meth:`draws`, leading dimension B.
            value: gives samples (B, D) their values (B,); its critic takes part frozen.
        """
        sample, log_prob = self.gaussian(s, noise["policy/z"])
        losses = {
            "actor/q_loss": -value(sample).mean(),
            **self.entropy_losses(log_prob, "actor/"),
        }
        metrics = {
            "actor/entropy": -log_prob.detach().mean(),
            "actor/entropy_coefficient": self.entropy_coefficient().detach(),
        }
        return losses, metrics
