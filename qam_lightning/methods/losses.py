"""Loss terms that two methods have in common: FQL's, the edit policy's, soft actor-critic's."""

from collections.abc import Callable

from torch import Tensor

from qam_lightning.core.policy import distillation_loss, entropy_coefficient_loss
from qam_lightning.nets.critic import CriticEnsemble
from qam_lightning.nets.frozen import frozen
from qam_lightning.nets.policies import EditPolicy, EntropyCoefficient, OneStepPolicy


def one_step_losses(
    policy: OneStepPolicy,
    critic: CriticEnsemble,
    s: Tensor,
    z: Tensor,
    teacher: Tensor,
    alpha: float,
) -> dict[str, Tensor]:
    """Return -mean Q(s, clip μ(s, z)) and α · distillation on ``teacher`` (Eq. 29, 42).

    Args:
        policy: the one-step policy μ.
        critic: takes part frozen.
        s: (B, O).
        z: (B, D) standard normal, the noise that made ``teacher``.
        teacher: (B, D), the flow's action for ``z``, held constant.
        alpha: behaviour coefficient α >= 0.
    """
    action = policy(s, z)
    return {
        "actor/q_loss": -frozen(critic)(s, action.clamp(-1.0, 1.0)).mean(),
        "actor/distill_loss": alpha * distillation_loss(action, teacher),
    }


def edit_losses(
    policy: EditPolicy,
    coefficient: EntropyCoefficient,
    critic: CriticEnsemble,
    s: Tensor,
    action: Tensor,
    noise: Tensor,
) -> dict[str, Tensor]:
    """Return the edit's value, entropy and entropy-coefficient losses (Eq. 30, 77-78).

    Args:
        policy: the edit policy.
        coefficient: weight of its entropy.
        critic: takes part frozen.
        s: (B, O).
        action: (B, D), the flow's action ã, held constant.
        noise: (B, D) standard normal.
    """
    edited, log_prob = policy(s, action.detach(), noise)
    return {
        "actor/edit_q_loss": -frozen(critic)(s, edited).mean(),
        **entropy_losses(coefficient(), log_prob, action.shape[-1], "actor/edit_"),
    }


def soft_actor_losses(
    coefficient: EntropyCoefficient,
    action: Tensor,
    log_prob: Tensor,
    value: Callable[[Tensor], Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return soft actor-critic's value, entropy and coefficient losses (Eq. 80-81), and metrics.

    Args:
        coefficient: weight of the entropy.
        action: (B, D) samples of the policy, with gradient.
        log_prob: (B,), their log-density.
        value: gives samples (B, D) their values (B,); its critic takes part frozen.
    """
    losses = {
        "actor/q_loss": -value(action).mean(),
        **entropy_losses(coefficient(), log_prob, action.shape[-1], "actor/"),
    }
    metrics = {
        "actor/entropy": -log_prob.detach().mean(),
        "actor/entropy_coefficient": coefficient().detach(),
    }
    return losses, metrics


def entropy_losses(
    coefficient: Tensor, log_prob: Tensor, dim: int, prefix: str
) -> dict[str, Tensor]:
    """Return the entropy's loss and its coefficient's, towards the entropy -D/2 (Eq. 77, 80).

    Args:
        coefficient: scalar, with gradient.
        log_prob: (B,), of samples, with gradient.
        dim: D.
        prefix: start of the losses' names.
    """
    return {
        f"{prefix}entropy_loss": coefficient.detach() * log_prob.mean(),
        f"{prefix}coefficient_loss": entropy_coefficient_loss(coefficient, log_prob, -0.5 * dim),
    }
