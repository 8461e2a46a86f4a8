"""QAM: Q-learning with Adjoint Matching (Algorithm 1, Eq. 17, 21-26).

Citation
    The paper: Li, Levine, "Q-learning with adjoint matching", arXiv:2601.14234, 2026.
    Domingo-Enrich et al., "Adjoint matching: fine-tuning flow and diffusion generative models
    with memoryless stochastic optimal control", ICLR 2025.

Trained by what
    critic Q_φ       TD with pessimistic EMA backup (Eq. 26), a' = ODE(f_β + f_θ; s', z)
    behaviour f_β    flow matching on dataset chunks (Eq. 17)
    residual f_θ     adjoint matching against τ ∇_a mean_K EMA-Q (Eq. 21)

Differences from the paper's text
    f_β in the SDE and the adjoint is its EMA; ODE sampling uses the online networks.
    σ and 1/u are shifted by the step h and the SDE's last step is a plain Euler step of f_β,
    which keeps Eq. 24 finite at u = 0 and free of noise at u = 1. That is the integrator
    shifted_euler, the default; denoiser is another discretisation of the same process.
    The adjoint starts at the gradient of Q(s, clip a): it vanishes outside the action box.
    Gradients are clipped by joint norm, as the published scores were made; the text says
    element-wise, which is ``grad_clip_mode: value``.
    Eq. 25 takes the Jacobian at the state and time after a step; here it is the state before it,
    a_i, at time u_i + h, as for the published scores.
    The Q of the adjoint is the mean of the EMA critics where Eq. 22 onwards writes Q_φ; the loss
    is Algorithm 1's sum over the steps, without the h of Eq. 21's integral.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qam_lightning.core.adjoint import action_gradient, adjoint_matching_loss
from qam_lightning.core.flow import Field, Recorded, TimeGrid
from qam_lightning.core.integrators import Integrator, Scheme, scheme
from qam_lightning.core.memoryless import Path
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.flow import FlowMethod
from qam_lightning.methods.noise import CloningNoise, NoiseSource, PolicyNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.frozen import ema_copy
from qam_lightning.util.errors import require


class QAMNoise(NamedTuple):
    """What QAM's actor losses draw.

    Attributes:
        cloning: x_0 and u of flow matching; None where the behaviour flow is frozen.
        path_x_0: (B, D) standard normal, where the SDE starts.
        path_z: (B, T - 1, D) standard normal, the SDE's increments.
    """

    cloning: CloningNoise | None
    path_x_0: Tensor
    path_z: Tensor


class QAM(FlowMethod):
    """Critic, behaviour flow f_β and a fine-tuned flow f_θ trained by adjoint matching.

    One update is Algorithm 1: `actor_losses` has its steps 1 to 5; step 6, TD (Eq. 26), is
    `Method.critic_losses`, with the next action from `policy`.
    """

    tau: float = setting(at_least=0)
    """Inverse temperature τ; the policy tends to the density ∝ π_β exp(τ Q), and 0 is cloning."""
    residual: bool = True
    """Whether f_θ is a residual on f_β (the paper's choice) or the full velocity v."""
    grad_clip: float = setting(default=1.0, at_least=0)
    """Bound on the gradient; 0 switches clipping off."""
    integrator: Integrator = "shifted_euler"
    """How the SDE and the adjoint are discretised: "shifted_euler" is the paper's; "denoiser" is
    of second order on the path and close to the tilt at few steps (not in the paper)."""

    def _check_settings(self) -> None:
        super()._check_settings()
        shifted, owner = self.integrator == "shifted_euler", type(self)
        expected = "1 with integrator shifted_euler, whose grid is uniform"
        require(not shifted or self.grid_power == 1, owner, "grid_power", self.grid_power, expected)
        expected = "at least 2 with integrator denoiser"
        require(shifted or self.flow_steps > 1, owner, "flow_steps", self.flow_steps, expected)

    def build(self) -> None:
        super().build()
        self.behavior = self.velocity_field()
        self.behavior_ema = ema_copy(self.behavior)
        self.fine_tuned = self.velocity_field()

    def actor_noise(self, draw: NoiseSource) -> QAMNoise:
        return QAMNoise(
            cloning=self.behavior_noise(draw),
            path_x_0=draw.normal(self.dim),
            path_z=draw.normal(self.flow_steps - 1, self.dim),
        )

    def actor_losses(self, batch: Batch, noise: QAMNoise) -> tuple[Losses, Metrics]:
        s = batch.observations
        behavior, fine_tuned = self.recorded(s)
        with torch.no_grad():
            # 1. Sample a path of the memoryless SDE (Eq. 24).
            path = self.sample_path(behavior, fine_tuned, noise)
            if not self.controls_last_step:  # f_θ is learned there all the same
                fine_tuned(path.states[-1], path.times[-1])
            # 2. Differentiate the critic where the path ends (Eq. 22).
            dq_da = action_gradient(
                lambda a: self.critic_ema(s, a.clamp(-1.0, 1.0)).mean(0), path.end
            )
            # 3. Run the lean adjoint backwards along the behaviour flow (Eq. 25).
            vjp = self.behavior_ema.linearize(s, path.states, path.jacobian_times)
            adjoints = self.scheme.lean_adjoint(vjp, -self.inverse_temperature * dq_da)
        # 4. Regress the fine-tuned flow on the adjoint (Eq. 21).
        control = self.control(path, behavior, fine_tuned)
        losses, metrics = self.regression(control, adjoints, path)
        # 5. Clone the behaviour (Eq. 17).
        losses = self.behavior_losses(self.behavior.at(s), batch, noise.cloning) | losses
        metrics |= {
            "actor/adjoint_rms": adjoints.square().mean().sqrt(),
            "actor/control_rms": control.detach().square().mean().sqrt(),
            "actor/q_grad_rms": dq_da.square().mean().sqrt(),
        }
        return losses, metrics

    @property
    def inverse_temperature(self) -> float | Tensor:
        """τ."""
        return self.tau

    def regression(self, control: Tensor, adjoints: Tensor, path: Path) -> tuple[Losses, Metrics]:
        """Return the adjoint matching loss, and metrics of it.

        Args:
            control: (T, B, D), v - f_β at the path's states.
            adjoints: (T, B, D), the lean adjoints.
            path: from `sample_path`.
        """
        return {"actor/adjoint_loss": adjoint_matching_loss(control, adjoints, path.sigma)}, {}

    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.flow_action(s, noise.z)

    def behavior_policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.sample(self.behavior.at(s), noise.z)

    @torch.no_grad()
    def flow_action(self, s: Tensor, z: Tensor) -> Tensor:
        """Return clip(ODE(f_β + f_θ; s, z)) with the online networks, (B, D)."""
        velocity = self.velocity(self.behavior.at(s), self.fine_tuned.at(s))
        return self.sample(velocity, z)

    def recorded(self, s: Tensor) -> tuple[Recorded, Recorded]:
        """Return the EMA of f_β, and f_θ, at states (B, O), as fields that keep their values."""
        return Recorded(self.behavior_ema.at(s)), Recorded(self.fine_tuned.at(s))

    def sample_path(self, behavior: Field, fine_tuned: Field, noise: QAMNoise) -> Path:
        """Simulate the memoryless SDE of v (Eq. 24).

        Args:
            behavior: the EMA of f_β at the states.
            fine_tuned: f_θ there.
            noise: the path's part of it is read.
        """
        velocity = self.velocity(behavior, fine_tuned)
        last = velocity if self.controls_last_step else behavior
        return self.scheme.simulate(velocity, last, noise.path_x_0, noise.path_z.transpose(0, 1))

    @property
    def scheme(self) -> Scheme:
        """The discretisation of the SDE and the adjoint."""
        return scheme(self.integrator, TimeGrid(self.flow_steps, self.grid_power))

    @property
    def controls_last_step(self) -> bool:
        """Whether the SDE's last step, which has no noise, follows v; otherwise f_β alone."""
        return self.integrator == "denoiser"

    @property
    def cloned_flows(self) -> tuple[str, ...]:
        """Both, where f_θ is the full velocity: it starts at the EMA of f_β, where control is 0."""
        return ("behavior",) if self.residual else ("behavior", "fine_tuned")

    def velocity(self, behavior: Field, fine_tuned: Field) -> Field:
        """Return the field v = f_β + f_θ; f_θ alone where it is no residual."""
        if not self.residual:
            return fine_tuned
        return lambda x, u: behavior(x, u) + fine_tuned(x, u)

    def control(self, path: Path, behavior: Recorded, fine_tuned: Recorded) -> Tensor:
        """Return v - f_β at the first N states of a path, (N, B, D): f_θ where it is a residual.

        Args:
            path: from `sample_path`.
            behavior: its field; where f_θ is no residual, it has the last state's value at most.
            fine_tuned: its field, with the values at N states.
        """
        v = torch.stack(fine_tuned.values)
        if self.residual:
            return v
        n = len(path.states) - len(behavior.values)
        f = behavior.field(path.states[:n], path.times[:n, None, None])
        return v - torch.stack([*f, *behavior.values])[: len(v)]
