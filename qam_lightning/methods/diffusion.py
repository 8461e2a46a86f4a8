"""What methods with a diffusion policy have in common: its network, its noise, how it acts."""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from qam_lightning.methods.base import Method
from qam_lightning.methods.noise import DiffusionNoise, NoiseSource, PolicyNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.diffusion import DiffusionPolicy


class DiffusionMethod(Method):
    """A method whose actor is a diffusion policy; ``flow_steps`` counts its steps T."""

    eta: float = setting(at_least=0)
    """Weight η of denoising dataset actions."""
    grad_clip: float = setting(default=1.0, at_least=0)
    """Bound on the gradient; 0 switches clipping off."""

    sampler: ClassVar[Callable[..., Tensor]]
    """Denoises an action, see `qam_lightning.core.diffusion`."""

    def build(self) -> None:
        super().build()
        sizes = self.spaces.obs_dim, self.dim, self.width, self.depth
        self.actor = DiffusionPolicy(*sizes, steps=self.flow_steps, sampler=type(self).sampler)

    def policy_noise(self, draw: NoiseSource) -> PolicyNoise:
        """Draw z (B, T, D): a^T and the noise of all steps but the last."""
        return PolicyNoise(z=draw.normal(self.flow_steps, self.dim))

    def actor_noise(self, draw: NoiseSource) -> DiffusionNoise:
        return DiffusionNoise(epsilon=draw.normal(self.dim), u=draw.uniform(1))

    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.actor.sample(s, noise.z)
