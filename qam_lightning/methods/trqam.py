"""TRQAM: adjoint matching within a trust region, a KL budget in place of the temperature.

Citation
    Dong, Lee, Kim, Kim, Shin, "Trust region Q adjoint matching", arXiv:2605.27079, 2026.

Trained by what
    critic Q_φ       as in QAM
    behaviour f_β    as in QAM
    velocity v       λ · QAM's adjoint matching with τ = 1/λ
    multiplier λ     dual descent: it rises while paths are farther from f_β's than the budget ε

An update estimates the KL of its paths from the behaviour's, per environment step of the chunk,
and moves λ for the next one:
    KL = mean_B Σ_i (2 h / σ_i²) ‖v - f_β‖² / H
    KL̄ ← 0.9 KL̄ + 0.1 min(KL, 2 ε),   λ ← clip(λ + 0.01 c (KL̄ - ε), 0.01 c, 100 c)
from KL̄ = 0 and λ = c. The authors write λ = c · l and adapt l; that is the same.

It is not a method of the QAM paper. As in the published code, the sum has all T steps. The last one
counts too, although the SDE follows f_β there and only the sampler follows v. With
``integrator: denoiser``, KL is that of this scheme, over its T - 1 steps with noise.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from qam_lightning.core.memoryless import Path
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.qam import QAM
from qam_lightning.methods.settings import setting


class TRQAM(QAM):
    """QAM whose temperature follows from a budget for the distance to the behaviour."""

    tau: ClassVar[None] = None  # type: ignore[assignment, misc]  # 1/λ, which is learned
    budget: float = setting(default=1.0, above=0, at_most=1e6)
    """ε, the KL of the policy's paths from the behaviour's, per environment step of a chunk."""
    scale: float = setting(default=3.0, at_least=1e-6, at_most=1e6)
    """c, where λ starts; its steps and bounds are in proportion."""
    residual: bool = False
    """Whether f_θ is a residual on f_β or the full velocity v (the authors' choice)."""

    adapted = {"multiplier": "actor/multiplier", "kl_mean": "actor/kl_mean"}

    def build(self) -> None:
        super().build()
        self.multiplier = nn.Buffer(torch.tensor(float(self.scale)))
        self.kl_mean = nn.Buffer(torch.tensor(0.0))

    @property
    def inverse_temperature(self) -> Tensor:
        """1/λ."""
        return 1.0 / self.multiplier

    def regression(self, control: Tensor, adjoints: Tensor, path: Path) -> tuple[Losses, Metrics]:
        losses, metrics = super().regression(control, adjoints, path)
        losses = {name: self.multiplier * loss for name, loss in losses.items()}
        divergence = self.scheme.control_cost(control.detach(), path) / self.flow_steps
        kl = self.batch_mean(divergence) / self.spaces.horizon
        return losses, {**metrics, "actor/kl": kl, **self.dual_step(kl)}

    def dual_step(self, kl: Tensor) -> Metrics:
        """Return KL̄ and λ after an update whose paths have this KL from the behaviour's."""
        c, budget = self.scale, self.budget
        mean = torch.lerp(self.kl_mean, kl.clamp(max=2.0 * budget), 0.1)
        multiplier = (self.multiplier + 0.01 * c * (mean - budget)).clamp(0.01 * c, 100.0 * c)
        return {"actor/kl_mean": mean, "actor/multiplier": multiplier}
