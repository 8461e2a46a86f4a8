"""A Gaussian policy whose entropy is held at a target by a learned coefficient: RLPD's, DSRL's."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from qam_lightning.core.draws import Draw
from qam_lightning.core.policy import entropy_coefficient_loss
from qam_lightning.nets.heads import LogScalar, TanhGaussian


class SoftPolicy(nn.Module):
    """π(a | s): soft actor-critic's tanh-Gaussian with target entropy -D/2 (Eq. 80).

    Args:
        obs_dim: O.
        dim: D.
        width: hidden width.
        depth: number of hidden layers.
    """

    def __init__(self, obs_dim: int, dim: int, width: int, depth: int) -> None:
        """Build the tanh-Gaussian and its entropy coefficient."""
        super().__init__()
        self.gaussian = TanhGaussian(obs_dim, dim, width, depth)
        self.entropy_coefficient = LogScalar()
        self.dim, self.target_entropy = dim, -0.5 * dim

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
        coefficient = self.entropy_coefficient()
        losses = {
            "actor/q_loss": -value(sample).mean(),
            "actor/entropy_loss": coefficient.detach() * log_prob.mean(),
            "actor/coefficient_loss": entropy_coefficient_loss(
                coefficient, log_prob, self.target_entropy
            ),
        }
        metrics = {
            "actor/entropy": -log_prob.detach().mean(),
            "actor/entropy_coefficient": coefficient.detach(),
        }
        return losses, metrics
