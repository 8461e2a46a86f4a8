"""The contract every method fulfils, and what all of them share.

A training step is one pure function, :meth:`Method.losses`: a batch and pre-drawn noise in, named
losses and metrics out. All randomness of a step is drawn in one place, as a function of
(seed, step), so that any step can be recomputed and a resumed run draws what it would have drawn.

Equation numbers, here and everywhere, are those of "Q-learning with Adjoint Matching". Where all
methods differ from its text:
    Eq. 26 prints the members' deviation as the root of a sum; it is that of a mean (divide by K).
    Eq. 23 and its kin are for single steps, most without γ. Here a chunk of H steps is worth its
    discounted reward and γ^H times what follows, also where it was cut short.
    Chunks that run into the next trajectory carry no weight in the critic's and the cloning loss;
    the paper does not say what becomes of them.
    Squared errors of flows are means over the chunk's dimensions where Eq. 17 writes sums.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from qam_lightning.core.critic import pessimistic, td_loss, td_target
from qam_lightning.core.draws import Draw, draw, mix
from qam_lightning.data.batch import Batch
from qam_lightning.nets.ensemble import CriticEnsemble
from qam_lightning.nets.frozen import ema_copy
from qam_lightning.nets.standardize import Standardize
from qam_lightning.util.errors import UserError, require

Noise = Mapping[str, Tensor]
Losses = dict[str, Tensor]


class Actor(Protocol):
    """The component that holds a method's policy networks."""

    def draws(self) -> dict[str, Draw]:
        """Name what its losses take per sample."""
        ...

    def act(self, s: Tensor, z: Tensor) -> Tensor:
        """Return actions in [-1, 1], (B, D), at states (B, O) from normal z (B, D)."""
        ...


@runtime_checkable
class Cloner(Protocol):
    """An actor that has also cloned the policy that made the data."""

    def behavior_act(self, s: Tensor, z: Tensor) -> Tensor:
        """Return actions of the cloned behaviour in [-1, 1], (B, D), from normal z (B, D)."""
        ...


class Method(L.LightningModule):
    """Critic ensemble, optimisation and acting; a subclass adds its actor.

    Args:
        obs_dim: O, size of an observation (linked to the data).
        action_dim: A, size of an action (linked to the data).
        chunk: H >= 1, actions per chunk (linked to the data).
        discount: γ in (0, 1] (linked to the data).
        rho: pessimism ρ >= 0 of the backup, mean_K - ρ std_K.
        num_critics: K >= 1 critics.
        flow_steps: T >= 1 integration steps of the flow.
        width: hidden width of every network.
        depth: number of hidden layers of every network.
        learning_rate: Adam's step size, > 0.
        lr_decay_steps: gradient steps in which the step size falls to 0 along half a cosine, >= 0;
            0 keeps it constant.
        grad_clip: bound on the gradient over all parameters jointly; 0 switches clipping off.
        grad_clip_mode: "norm" rescales to global norm ``grad_clip``; "value" clips element-wise.
        best_of_n: N >= 1 candidates when acting; the one with the largest value is taken.
        standardize: let the networks see observations with the dataset's means subtracted, divided
            by its standard deviations (not in the paper).
        compile: compile the losses with torch.compile (needs a C++ compiler on CPUs): a minute
            at the start, then faster updates.
        seed: seed of all training noise (linked to the run's seed).
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        discount: float,
        rho: float,
        num_critics: int,
        flow_steps: int,
        width: int,
        depth: int,
        learning_rate: float,
        lr_decay_steps: int,
        grad_clip: float,
        grad_clip_mode: Literal["norm", "value"],
        best_of_n: int,
        standardize: bool,
        compile: bool,
        seed: int,
    ) -> None:
        """Check the ranges and build the critic."""
        super().__init__()
        for name, value, least in (
            ("horizon", horizon, 1),
            ("num_critics", num_critics, 1),
            ("flow_steps", flow_steps, 1),
            ("width", width, 1),
            ("depth", depth, 1),
            ("lr_decay_steps", lr_decay_steps, 0),
            ("best_of_n", best_of_n, 1),
            ("grad_clip", grad_clip, 0),
        ):
            require(value >= least, type(self), name, value, f"at least {least}")
        require(0 <= rho < math.inf, type(self), "rho", rho, "at least 0 and finite")
        finite = 0 < learning_rate < math.inf
        require(finite, type(self), "learning_rate", learning_rate, "above 0 and finite")
        require(0 < discount <= 1, type(self), "discount", discount, "in (0, 1]")
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.obs_dim, self.action_dim, self.horizon = obs_dim, action_dim, horizon
        self.dim = horizon * action_dim
        self.discount, self.rho = discount, rho
        self.flow_steps = flow_steps
        self.sizes = (obs_dim, self.dim, width, depth)
        self.learning_rate, self.lr_decay_steps = learning_rate, lr_decay_steps
        self.grad_clip, self.grad_clip_mode = grad_clip, grad_clip_mode
        self.best_of_n, self.seed = best_of_n, seed
        self.ranks, self.rank = 1, 0  # processes that share every batch, and which this is

        self.seen = Standardize(obs_dim) if standardize else nn.Identity()
        self.critic = self.make_critic(obs_dim + self.dim, width, depth, num_critics)
        self.critic_ema = ema_copy(self.critic)

        self.step_losses = torch.compile(self.losses) if compile else self.losses
        self.gradient_step, self.env_step, self.phase = 0, 0, "offline"
        self.metrics: dict[str, Tensor] = {}

    # What a method defines ---------------------------------------------------------------------

    delay: ClassVar[int] = 1
    """Gradient steps per update of actor and targets."""

    offline_phase: ClassVar[bool] = True
    """Whether it trains on the dataset alone before it acts. Where not, it starts online: actions
    are random until training starts, and every batch is half offline, half online data."""

    actor: Actor
    """Set by the method's constructor."""

    def make_critic(self, in_dim: int, width: int, depth: int, members: int) -> CriticEnsemble:
        """Build the critics; whatever else they take, ``critic(s, a)`` must give (K, B) values."""
        return CriticEnsemble(in_dim, width, depth, members)

    @abstractmethod
    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Return the actor's named losses, to be summed, and further metrics, all scalars."""

    def actor_draws(self) -> dict[str, Draw]:
        """Name the random quantities the actor's losses take per sample."""
        return self.actor.draws()

    def policy(self, s: Tensor, noise: Noise) -> Tensor:
        """Return the policy's action chunks in [-1, 1], (B, D), at states ``s`` (B, O)."""
        return self.actor.act(s, noise["z"])

    def policy_draws(self) -> dict[str, Draw]:
        """Name the random quantities one call of the policy takes per state."""
        return {"z": Draw((self.dim,))}

    def behavior_policy(self, s: Tensor, noise: Noise) -> Tensor:
        """Return the cloned behaviour's action chunks in [-1, 1], (B, D).

        Raises:
            UserError: The method clones no behaviour.
        """
        if not isinstance(self.actor, Cloner):
            name = type(self).__name__
            raise UserError(f"{name} clones no behaviour policy; act with its learned policy")
        return self.actor.behavior_act(s, noise["z"])

    def merit(self, q: Tensor) -> Tensor:
        """Return what best-of-N maximises, (B,), from members' values (K, B): their mean."""
        return q.mean(0)

    def backup_draws(self) -> dict[str, Draw]:
        """Name the random quantities one :meth:`backup_value` takes per state."""
        return self.policy_draws()

    def backup_value(self, s: Tensor, noise: Noise) -> Tensor:
        """Return the value (B,) that the TD target takes at next states ``s`` (B, O) (Eq. 26)."""
        return pessimistic(self.critic_ema(s, self.policy(s, noise)), self.rho)

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return (network, its moving average): every module ``x_ema`` is the average of ``x``."""
        modules = dict(self.named_modules())
        return [
            (modules[name.removesuffix("_ema")], target)
            for name, target in modules.items()
            if name.endswith("_ema")
        ]

    # A training step ---------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Note the ranks; take the dataset's statistics, which a resumed run's checkpoint has."""
        self.ranks, self.rank = self.trainer.world_size, self.trainer.global_rank
        # What a checkpoint brought lies on the CPU.
        self.metrics = {name: x.to(self.device) for name, x in self.metrics.items()}
        if isinstance(self.seen, Standardize) and self.gradient_step == 0:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.seen.fit(*data.observation_statistics())

    def losses(
        self, batch: Batch, noise: Noise, with_actor: bool = True
    ) -> tuple[Losses, dict[str, Tensor]]:
        """Return all losses of one step and further metrics; pure in batch, noise and weights.

        Args:
            batch: B chunks.
            noise: every quantity of :meth:`step_draws`, leading dimension B.
            with_actor: whether the actor is trained too; not on every step under ``delay``.
        """
        batch = batch._replace(
            observations=self.seen(batch.observations),
            next_observations=self.seen(batch.next_observations),
        )
        critic, metrics = self.critic_loss(batch, noise)
        actor, more = self.actor_losses(batch, noise) if with_actor else ({}, {})
        return {"critic/loss": critic, **actor}, {**metrics, **more}

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the TD loss on the backup's value (Eq. 26) and the critic's metrics."""
        with torch.no_grad():
            backup = {name: noise[f"next/{name}"] for name in self.backup_draws()}
            value = self.backup_value(batch.next_observations, backup)
            target = td_target(batch.rewards, batch.masks, value, self.discount**self.horizon)
        q = self.critic(batch.observations, batch.actions)
        detached = q.detach()
        metrics = {
            "critic/q_mean": detached.mean(),
            "critic/q_max": detached.max(),
            "critic/q_min": detached.min(),
            "critic/q_spread": detached.std(0, correction=0).mean(),
            "critic/target_mean": target.mean(),
        }
        return td_loss(q, target, batch.valid), metrics

    def step_draws(self) -> dict[str, Draw]:
        """Name all random quantities of a training step: the backup's and the actor's."""
        backup = {f"next/{name}": d for name, d in self.backup_draws().items()}
        return {**backup, **self.actor_draws()}

    def step_noise(self, size: int) -> dict[str, Tensor]:
        """Draw this step's noise for ``size`` samples, a function of seed, step and rank's share.

        All ranks draw for the global batch and keep their rows, so that R ranks with batches of
        B / R train as one rank with B.
        """
        generator = torch.Generator(self.device).manual_seed(mix(self.seed, self.gradient_step))
        noise = draw(self.step_draws(), (size * self.ranks,), generator)
        mine = slice(self.rank * size, (self.rank + 1) * size)
        return {name: x[mine] for name, x in noise.items()}

    def batch_mean(self, x: Tensor) -> Tensor:
        """Return the mean of ``x`` (B,) over the batches of all ranks, without gradient.

        For what a loss divides by and the like: averaged gradients make up for means that enter a
        loss linearly, not for others.
        """
        mean = x.detach().mean()
        if self.ranks > 1:
            torch.distributed.all_reduce(mean)
            mean /= self.ranks
        return mean

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Sum the losses, differentiate once, clip jointly, and take one Adam step."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        losses, metrics = self._losses_of_step(batch, self.step_noise(len(batch.rewards)))
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        # Several devices wait for a gradient of every parameter on every step. The zeros of an
        # actor that is not due are dropped again: with them, Adam's momentum would move it, which
        # it does not on one device, where it has no gradient at all.
        parallel = isinstance(self.trainer.strategy, ParallelStrategy)
        idle = self._idle_parameters() if parallel else []
        self.manual_backward(loss + sum(0.0 * p.sum() for p in idle))
        for p in idle:
            p.grad = None
        norm = self._clip_gradients()
        for group in optimizer.param_groups:
            group["lr"] = self.step_size(self.gradient_step)
        optimizer.step()
        self.gradient_step += 1
        named = {name: value.detach() for name, value in losses.items()}
        # A delayed loss keeps its last value between its steps.
        self.metrics |= {"loss": loss.detach(), **named, **metrics, "grad_norm": norm}

    def step_size(self, step: int) -> float:
        """Return Adam's step size after ``step`` gradient steps; a run resumes with its own."""
        if self.lr_decay_steps == 0:
            return self.learning_rate
        done = min(step / self.lr_decay_steps, 1.0)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    def due(self, step: int) -> bool:
        """Whether gradient step number ``step`` (from 1) updates the actor and the targets."""
        return step % self.delay == 0

    def _idle_parameters(self) -> list[nn.Parameter]:
        """Return what the coming step does not train: all but the critic, unless actors are due."""
        if self.due(self.gradient_step + 1):
            return []
        named = self.named_parameters()
        return [p for n, p in named if p.requires_grad and not n.startswith("critic.")]

    def _losses_of_step(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        try:
            return self.step_losses(batch, noise, self.due(self.gradient_step + 1))
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"model.init_args.compile: the compiler failed ({reason}); "
                "install a C++ compiler such as g++, or set it to false"
            ) from error

    def _clip_gradients(self) -> Tensor:
        """Clip as configured; return the global norm before clipping."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        if self.grad_clip > 0 and self.grad_clip_mode == "norm":
            return nn.utils.clip_grad_norm_(parameters, self.grad_clip)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.grad_clip > 0:
            nn.utils.clip_grad_value_(parameters, self.grad_clip)
        return norm

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the one Adam over everything that is trained."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=self.learning_rate, fused=True)

    # Acting ------------------------------------------------------------------------------------

    def policy_noise(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw what :meth:`act` takes at n states: tensors of leading shape (n, best_of_n)."""
        return draw(self.policy_draws(), (n, self.best_of_n), generator)

    @torch.no_grad()
    def act(self, s: Tensor, noise: Noise) -> Tensor:
        """Return action chunks in [-1, 1], (n, H, A), at states ``s`` (n, O): the best of N."""
        s = self.seen(s)
        candidates = self._candidates(self.policy, s, noise)
        if self.best_of_n == 1:
            best = candidates[:, 0]
        else:
            best = candidates[torch.arange(len(s)), self._merits(s, candidates).argmax(1)]
        return best.unflatten(-1, (self.horizon, self.action_dim))

    @torch.no_grad()
    def behavior_act(self, s: Tensor, noise: Noise) -> Tensor:
        """Return action chunks of the cloned behaviour, (n, H, A), the first candidate of each."""
        first = {name: x[:, :1] for name, x in noise.items()}
        chunks = self._candidates(self.behavior_policy, self.seen(s), first)[:, 0]
        return chunks.unflatten(-1, (self.horizon, self.action_dim))

    def _merits(self, s: Tensor, candidates: Tensor) -> Tensor:
        n, count, _ = candidates.shape
        q = self.critic(s.repeat_interleave(count, 0), candidates.flatten(0, 1))
        return self.merit(q).view(n, count)

    def _candidates(self, policy: Any, s: Tensor, noise: Noise) -> Tensor:
        count = next(iter(noise.values())).shape[1]
        flat = {name: x.flatten(0, 1) for name, x in noise.items()}
        return policy(s.repeat_interleave(count, 0), flat).unflatten(0, (len(s), count))

    # Counters ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store our own counters, and the metrics that a delayed loss left from its last step."""
        mean = self.trainer.strategy.reduce  # over ranks, as they are logged
        checkpoint["metrics"] = {n: mean(x.clone()).cpu() for n, x in self.metrics.items()}
        checkpoint["counters"] = {
            "gradient_step": self.gradient_step,
            "env_step": self.env_step,
            "phase": self.phase,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters and metrics."""
        self.metrics = dict(checkpoint.get("metrics", {}))
        for name, value in checkpoint["counters"].items():
            setattr(self, name, value)
