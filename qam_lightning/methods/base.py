"""The contract of a method, and what all methods share: critic, training step, acting.

A training step is one pure function of weights, batch and noise: `Method.losses`. Its noise is
drawn in one place, `Method.step_noise`, as a function of (seed, gradient step). So any step can be
computed again, and a resumed run draws what the uninterrupted run would have drawn.

Equation numbers, here and everywhere, are those of "Q-learning with Adjoint Matching". Where all
methods differ from its text:
    Eq. 26 prints std_K as the root of a sum; here the variance is a mean (it divides by K).
    Eq. 23 and its kin are for single steps, most without γ. Here a chunk of H steps is worth its
    discounted reward plus γ^H times the next value, also where the trajectory cut the chunk short.
    Chunks that run into the next trajectory carry no weight in the critic's and the cloning loss;
    the paper does not say how it treats them.
    Squared errors of flows are means over the chunk's dimensions where Eq. 17 writes sums.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from qam_lightning.callbacks.base import ours
from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.core.critic import pessimistic, td_loss, td_target
from qam_lightning.core.flow import Field, flow_matching_loss
from qam_lightning.data.batch import Batch
from qam_lightning.data.spaces import Spaces
from qam_lightning.methods.compiled import Kind, check_compiler, naming_the_setting
from qam_lightning.methods.noise import (
    CloningNoise,
    NoiseSource,
    PolicyNoise,
    StepNoise,
    map_noise,
)
from qam_lightning.methods.optimization import decayed_learning_rate, mean_over_ranks
from qam_lightning.methods.restore import check_training, check_weights
from qam_lightning.methods.settings import Configurable, setting
from qam_lightning.methods.update import Adam, prepare_update
from qam_lightning.nets.critic import CriticEnsemble
from qam_lightning.nets.frozen import ema_copy
from qam_lightning.nets.standardize import Standardize
from qam_lightning.nets.velocity_field import VelocityField
from qam_lightning.util.checkpoint import ENTRY, FORMAT, Clone, check_content
from qam_lightning.util.devices import check_precision
from qam_lightning.util.errors import ArgumentError, UserError, require, shown
from qam_lightning.util.memory import check_memory
from qam_lightning.util.provenance import hardware, versions
from qam_lightning.util.rng import Stream, torch_generator

Losses = dict[str, Tensor]
"""Named scalars that a step sums and differentiates."""

Metrics = dict[str, Tensor]
"""Named scalars that are logged, without gradient."""


@runtime_checkable
class TrainingData(Protocol):
    """What a method asks of a data module that belongs to it."""

    spaces: Spaces
    discount: float

    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation (O,) of the observations."""
        ...


@runtime_checkable
class TaskData(Protocol):
    """What a data module knows of the environment that its data come from."""

    env: str
    dataset: str
    task: int
    sparse: bool


class Method(Configurable):
    """Critic ensemble, training step and acting; a subclass adds its actor.

    Defaults are the paper's (Table 3). Annotated attributes are settings (see
    :mod:`qam_lightning.methods.settings`): ``QAM(spaces, tau=3.0)``.
    """

    spaces: Spaces = dataclasses.field(kw_only=False)
    """Sizes of observations, actions and chunks (linked to the data)."""
    discount: float = setting(default=0.99, above=0, at_most=1)
    """Discount γ per environment step (linked to the data)."""
    rho: float = setting(default=0.5, at_least=0)
    """Pessimism ρ of the TD target, mean_K Q - ρ std_K Q."""
    num_critics: int = setting(default=10, at_least=1)
    """K, the number of critics."""
    flow_steps: int = setting(default=10, at_least=1, at_most=10_000)
    """T, integration steps of a flow or steps of a diffusion."""
    width: int = setting(default=512, at_least=1)
    """Hidden width of every network."""
    depth: int = setting(default=4, at_least=1, at_most=1_000)
    """Hidden layers of every network."""
    learning_rate: float = setting(default=3e-4, above=0)
    """Adam's step size."""
    lr_decay_steps: int = setting(default=0, at_least=0)
    """Gradient steps in which the step size falls to 0 along half a cosine; 0 keeps it constant."""
    grad_clip: float = setting(default=0.0, at_least=0)
    """Bound on the gradient; 0 switches clipping off."""
    grad_clip_mode: Literal["norm", "value"] = "norm"
    """"norm" rescales all gradients to joint norm ``grad_clip``; "value" clips element-wise."""
    target_rate: float = setting(default=0.005, above=0, at_most=1)
    """Rate λ at which target networks follow the trained networks, per update."""
    best_of_n: int = setting(default=1, at_least=1)
    """Candidate chunks when acting; the one of largest value is taken."""
    standardize: bool = False
    """Subtract the dataset's mean from observations and divide by its standard deviation (not in
    the paper)."""
    freeze_behavior: bool = False
    """Keep the behaviour flow as another run cloned it (see ``pretrained``), and save the time that
    cloning takes."""
    compile: Literal["off", "default", "graph"] | bool = "off"  # type: ignore[assignment]
    """"default" compiles the whole update, on CPUs with a C++ compiler; "graph" besides captures it
    in a CUDA graph. False is "off" and True is "default"."""
    seed: int = setting(default=0, at_least=0)
    """Seed of all training noise (linked to the run's seed)."""

    actor_delay: ClassVar[int] = 1
    """Gradient steps per update of actor and targets."""

    offline_phase: ClassVar[bool] = True
    """Whether the method trains on the dataset before it acts. A method without an offline phase
    acts randomly until training starts; half of each batch is then offline data."""

    has_critic: ClassVar[bool] = True
    """Whether the method learns values. One without trains its actor alone: the settings of critics
    have no effect, and there is no best of N."""

    adapted: ClassVar[Mapping[str, str]] = {}
    """Buffers that a training step sets, by name, each to the metric of this name: an actor step
    ends with the value that its losses computed. They are part of the method's state."""

    acting_settings: ClassVar[tuple[str, ...]] = ("best_of_n",)
    """What may be changed in a trained policy: settings that acting reads and no network depends
    on, and ``temperature`` where ``noise.z`` is what a flow, or its one-step copy, starts from."""

    behavior_settings: ClassVar[tuple[str, ...]] = ("best_of_n", "flow_steps", "temperature")
    """The same for the cloned behaviour, which follows a flow from ``noise.z``."""

    def __post_init__(self) -> None:
        given: Any = self.spaces  # a dict where a checkpoint or a configuration file gives it
        self.spaces = Spaces(**given) if isinstance(given, dict) else Spaces(*given)
        if isinstance(self.compile, bool):  # YAML reads off as False
            self.compile = "default" if self.compile else "off"
        for name, size in self.spaces._asdict().items():
            if not isinstance(size, int) or size < 1:
                raise ArgumentError(type(self), name, f"is {shown(size)}, expected at least 1")
        super().__post_init__()
        if self.freeze_behavior:
            if not self.clones_behavior:
                problem = f"is True, but {type(self).__name__} clones no behaviour flow"
                raise ArgumentError(type(self), "freeze_behavior", problem)
            self.get_submodule("behavior").requires_grad_(False)

    def _check_settings(self) -> None:
        """Check ``best_of_n``, and that critics, their targets and an actor fit into memory.

        Raises:
            ArgumentError: they do not, or nothing can choose the best of N.
        """
        single = self.has_critic or self.best_of_n == 1
        expected = "1, as there is no critic to choose by"
        require(single, type(self), "best_of_n", self.best_of_n, expected)
        network = self.spaces.obs_dim + self.spaces.chunk_dim + (self.depth - 1) * self.width
        self._check_memory(4 * network * self.width * (2 * self._members + 1), "the networks")

    def _check_memory(self, needed: int, what: str) -> None:
        sizes = ("width", "depth", "num_critics")
        defaults = {f.name: f.default for f in dataclasses.fields(Method)}
        largest = max(sizes, key=lambda name: getattr(self, name) / defaults[name])  # type: ignore[operator]
        others = " and ".join(f"{name} {getattr(self, name)}" for name in sizes if name != largest)
        problem = f"is {getattr(self, largest)}: with {others}, {what}"
        check_memory(needed, type(self), largest, problem)

    @property
    def _members(self) -> int:
        """How many critics there are."""
        return self.num_critics if self.has_critic else 0

    def build(self) -> None:
        """Create the critic and its target; a subclass adds its own networks."""
        self.automatic_optimization = False
        self.dim = self.spaces.chunk_dim
        self.ranks, self.rank = 1, 0  # processes that share every batch, and which this is
        self.obs_norm = Standardize(self.spaces.obs_dim) if self.standardize else nn.Identity()
        if self.has_critic:
            self.critic = self.make_critic()
            self.critic_ema = ema_copy(self.critic)
        self.gradient_step, self.env_step, self.phase = 0, 0, "offline"
        self.metrics: Metrics = {}
        # Where the behaviour flow comes from, if not from here.
        self.pretrained: Clone | None = None
        self._update: Callable[..., Metrics] | None = None

    # What a method defines ---------------------------------------------------------------------

    @abstractmethod
    def actor_losses(self, batch: Batch, noise: Any) -> tuple[Losses, Metrics]:
        """Return the actor's named losses, to be summed, and further metrics, all scalars."""

    @abstractmethod
    def policy(self, s: Tensor, noise: Any) -> Tensor:
        """Return the policy's action chunks in [-1, 1], (B, D), at states ``s`` (B, O)."""

    def actor_losses_given(self, batch: Batch, noise: Any, q: Tensor) -> tuple[Losses, Metrics]:
        """Return `actor_losses`; overridden where they read the critic's values of the chunks.

        Args:
            batch: B chunks.
            noise: what `actor_noise` draws.
            q: (K, B), the critic's values of the chunks, without gradient.
        """
        return self.actor_losses(batch, noise)

    def actor_noise(self, draw: NoiseSource) -> Any:
        """Draw what `actor_losses` takes; None if it takes nothing."""
        return None

    def cloning_noise(self, draw: NoiseSource) -> CloningNoise:
        """Draw what the flow matching loss takes, for the actor's losses that contain it."""
        return CloningNoise(x_0=draw.normal(self.dim), u=draw.uniform(1))

    def behavior_noise(self, draw: NoiseSource) -> CloningNoise | None:
        """Draw what `behavior_losses` takes; None where the behaviour flow is frozen."""
        return None if self.freeze_behavior else self.cloning_noise(draw)

    def policy_noise(self, draw: NoiseSource) -> Any:
        """Draw what `policy` takes."""
        return PolicyNoise(z=draw.normal(self.dim))

    def next_noise(self, draw: NoiseSource) -> Any:
        """Draw what `next_value` takes: by default the policy's noise."""
        return self.policy_noise(draw)

    def behavior_policy(self, s: Tensor, noise: Any) -> Tensor:
        """Return the cloned behaviour's action chunks in [-1, 1], (B, D), from the policy's noise.

        Raises:
            UserError: the method clones no behaviour.
        """
        name = type(self).__name__
        raise UserError(f"{name} clones no behaviour policy; act with its learned policy")

    @property
    def clones_behavior(self) -> bool:
        """Whether `behavior_policy` is there; its flow is then named ``behavior``."""
        return type(self).behavior_policy is not Method.behavior_policy

    @property
    def cloned_flows(self) -> tuple[str, ...]:
        """Names of flows that a pretrained clone starts: all but ``behavior`` from its average."""
        return ("behavior",)

    def make_critic(self) -> CriticEnsemble:
        """Create the critics; ``critic(s, a)`` must give (K, B) values."""
        in_dim = self.spaces.obs_dim + self.dim
        return CriticEnsemble(in_dim, self.width, self.depth, self.num_critics)

    def velocity_field(self) -> VelocityField:
        """Create a velocity field of chunks in the method's size."""
        return VelocityField(self.spaces.obs_dim, self.dim, self.width, self.depth)

    def candidate_score(self, q: Tensor) -> Tensor:
        """Return what best-of-N maximises, (B,), from members' values (K, B): their mean."""
        return q.mean(0)

    def next_value(self, s: Tensor, noise: Any) -> Tensor:
        """Return the value (B,) in the TD target, at next states ``s`` (B, O) (Eq. 26)."""
        return pessimistic(self.critic_ema(s, self.policy(s, noise)), self.rho)

    # Losses of a step --------------------------------------------------------------------------

    def losses(
        self, batch: Batch, noise: StepNoise, with_actor: bool = True
    ) -> tuple[Losses, Metrics]:
        """Return all losses of one step and further metrics; pure in batch, noise and weights.

        Args:
            batch: B chunks.
            noise: what `step_noise` draws.
            with_actor: whether the step trains the actor too; not every step does under
                ``actor_delay``.
        """
        batch = batch._replace(
            observations=self.obs_norm(batch.observations),
            next_observations=self.obs_norm(batch.next_observations),
        )
        if not self.has_critic:
            return self.actor_losses(batch, noise.actor)
        q = self.critic(batch.observations, batch.actions)
        losses, metrics = self.critic_losses(batch, noise.next, q)
        if with_actor:
            actor, more = self.actor_losses_given(batch, noise.actor, q.detach())
            losses, metrics = losses | actor, metrics | more
        return losses, metrics

    def forward(
        self, batch: Batch, noise: StepNoise, with_actor: bool = True
    ) -> tuple[Losses, Metrics]:
        """Return the `losses`."""
        return self.losses(batch, noise, with_actor)

    def behavior_losses(self, field: Field, batch: Batch, noise: CloningNoise | None) -> Losses:
        """Return the flow matching loss of the behaviour flow (Eq. 17); none where it is frozen.

        Args:
            field: f_β at the chunks' observations.
            batch: B chunks.
            noise: what `behavior_noise` draws.
        """
        if noise is None:
            return {}
        x_0, u = noise
        return {"actor/flow_loss": flow_matching_loss(field, x_0, batch.actions, u, batch.valid)}

    def critic_losses(self, batch: Batch, noise: Any, q: Tensor) -> tuple[Losses, Metrics]:
        """Return the TD loss (Eq. 26) and the critic's metrics.

        Args:
            batch: B chunks.
            noise: what `next_noise` draws.
            q: (K, B), the critic's values of the chunks, with gradient.
        """
        with torch.no_grad():
            value = self.next_value(batch.next_observations, noise)
            discount = self.discount**self.spaces.horizon
            target = td_target(batch.rewards, batch.masks, value, discount)
        detached = q.detach()
        metrics = {
            "critic/q_mean": detached.mean(),
            "critic/q_max": detached.max(),
            "critic/q_min": detached.min(),
            "critic/q_spread": detached.std(0, correction=0).mean(),
            "critic/target_mean": target.mean(),
        }
        return {"critic/loss": td_loss(q, target, batch.valid)}, metrics

    def step_noise(self, size: int) -> StepNoise:
        """Draw this gradient step's noise for ``size`` chunks, this rank's share of the batch."""
        generator = torch_generator(
            self.seed, Stream.TRAINING_NOISE, self.gradient_step, device=self.device
        )
        draw = NoiseSource(size, generator, self.ranks, self.rank)
        following = self.next_noise(draw) if self.has_critic else None
        return StepNoise(next=following, actor=self.actor_noise(draw))

    def batch_mean(self, x: Tensor) -> Tensor:
        """Return the mean of ``x`` (B,) over the batches of all ranks, without gradient.

        Averaging gradients over ranks makes up for means that enter a loss linearly. Use this for
        the others, such as a mean that a loss divides by.
        """
        return mean_over_ranks(x.mean(), self.ranks)

    # A training step ---------------------------------------------------------------------------

    def configure_callbacks(self) -> list[L.Callback]:
        """Attach what any trainer needs: the target networks' update, and rows for its loggers."""
        # Not at the top: the callback works on methods.
        from qam_lightning.callbacks.metrics import MetricsLogger

        callbacks: list[L.Callback] = [EmaTargets(self.target_rate)]
        trainer: Any = self._trainer  # None until there is one
        every = trainer.log_every_n_steps if trainer and trainer.loggers else 0
        if every and not any(isinstance(c, MetricsLogger) for c in trainer.callbacks):
            callbacks.append(MetricsLogger(every_n_steps=every))
        return callbacks

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the one Adam over everything that is trained."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return Adam(trained, lr=self.learning_rate, fused=True)

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return (network, target): every module ``x_ema`` is the moving average of ``x``."""
        modules = dict(self.named_modules())
        return [
            (modules[name.removesuffix("_ema")], target)
            for name, target in modules.items()
            if name.endswith("_ema")
        ]

    def setup(self, stage: str) -> None:
        """Check that training fits into memory, where that is the CPU's.

        Raises:
            ArgumentError: it does not.
        """
        if stage != "fit" or self.trainer.strategy.root_device.type != "cpu":
            return
        trained = sum(p.nbytes for p in self.parameters() if p.requires_grad)
        # Gradients and Adam's two moments.
        needed = sum(x.nbytes for x in self.state_dict().values()) + 3 * trained
        self._check_memory(needed, "training")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(size := getattr(data, "batch_size", None), int):
            rows = size // self.trainer.world_size
            # Every layer of the critics, or of an actor, keeps its input for the backward pass.
            needed += rows * 4 * max(self._members, 1) * self.width * self.depth
            check_memory(needed, type(data), "batch_size", f"is {shown(size)}: a training step")

    def on_fit_start(self) -> None:
        """Check trainer and data, note the ranks, and take the dataset's statistics if wanted."""
        self._check_trainer()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, TrainingData):
            self._check_data(data)
        self.check_clone(data)
        self.ranks, self.rank = self.trainer.world_size, self.trainer.global_rank
        self._update = None  # an earlier fit may have ended in an error
        # A checkpoint is read onto the CPU.
        self.metrics = {name: x.to(self.device) for name, x in self.metrics.items()}
        fresh = self.gradient_step == 0 and self.pretrained is None
        if isinstance(self.obs_norm, Standardize) and fresh:
            if not isinstance(data, TrainingData):
                problem = "needs a data module with observation_statistics(); set it to False"
                raise ArgumentError(type(self), "standardize", problem)
            self.obs_norm.fit(*data.observation_statistics())

    def check_clone(self, data: object) -> None:
        """Check that a run may begin: with a clone of these data, as far as both are known.

        Raises:
            ArgumentError: the clone is of others; or there is none to freeze.
        """
        if self.freeze_behavior and self.pretrained is None:
            problem = "is True, but there is no clone to keep; name its run as pretrained"
            raise ArgumentError(type(self), "freeze_behavior", problem)
        if self.pretrained is None or self.gradient_step > 0:
            return
        theirs = self.pretrained.data
        for name, own in getattr(data, "identity", {}).items():
            if theirs.get(name, own) != own:
                problem = f"is {shown(own)}, but the clone in {self.pretrained.path} learned from"
                raise ArgumentError(type(data), name, f"{problem} {shown(theirs[name])}")

    def _check_trainer(self) -> None:
        check_precision(self.trainer.precision)
        with naming_the_setting(type(self)):
            check_compiler(cast(Kind, self.compile), self.device, self.trainer.world_size)
        self._targets()

    def _targets(self) -> EmaTargets | None:
        callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        found = [callback for callback in callbacks if isinstance(callback, EmaTargets)]
        if len(found) != 1 and self.ema_pairs():
            raise UserError(
                f"{type(self).__name__}: the trainer has {len(found)} EmaTargets callbacks, "
                "expected 1; call super().configure_callbacks() where you override it, and give "
                "the trainer none"
            )
        return found[0] if found else None

    def _check_data(self, data: TrainingData) -> None:
        if data.discount != self.discount:
            problem = f"is {self.discount}, but the data's is {data.discount}"
            raise ArgumentError(type(self), "discount", problem)
        if data.spaces != self.spaces:
            problem = f"are {tuple(self.spaces)}, but the data's are {tuple(data.spaces)}"
            names = f"({', '.join(self.spaces._fields)})"
            raise ArgumentError(type(self), "spaces", f"{names} {problem}; pass data.spaces")

    def on_fit_end(self) -> None:
        """Give every parameter memory of its own again, so that the module can be copied."""
        self._update = None
        for p in self.parameters():
            p.data = p.data.clone()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one gradient step: see :mod:`qam_lightning.methods.update`."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        step_size = decayed_learning_rate(
            self.learning_rate, self.gradient_step, self.lr_decay_steps
        )
        optimizer.param_groups[0]["lr"] = step_size
        noise = self.step_noise(len(batch.rewards))
        actor_step = self.is_actor_step(self.gradient_step + 1)
        if self._update is None:
            self._update = prepare_update(self, optimizer.optimizer, self._targets())
        one_step = partial(self._update, batch, noise, step_size, actor_step)
        metrics = optimizer.step(one_step)  # Lightning counts the optimizer's steps
        self.gradient_step += 1
        self.metrics |= metrics  # a delayed loss keeps its last value between its steps
        for callback in ours(self.trainer):
            callback.on_gradient_step(self.trainer, self)

    @torch.no_grad()
    def adapt(self, metrics: Metrics, buffers: Mapping[str, Tensor] | None = None) -> None:
        """End an actor step: set what it adapts, in place.

        Args:
            metrics: of the step's losses.
            buffers: the method's tensors by name, where others stand for its own.
        """
        for name, metric in self.adapted.items():
            (self.get_buffer(name) if buffers is None else buffers[name]).copy_(metrics[metric])

    def is_actor_step(self, step: int) -> bool:
        """Whether gradient step number ``step`` (from 1) updates the actor and the targets."""
        return step % self.actor_delay == 0

    # Acting ------------------------------------------------------------------------------------

    def check_acting(self, name: str, value: object, behavior: bool = False) -> None:
        """Check that the policy, or the cloned behaviour, has a setting of acting.

        Raises:
            ArgumentError: it has not.
        """
        known = self.behavior_settings if behavior else self.acting_settings
        if name not in known:
            who = "the cloned behaviour" if behavior else f"the policy of {type(self).__name__}"
            problem = f"is {shown(value)}, but {who} has no such setting; it has {', '.join(known)}"
            raise ArgumentError(type(self), name, problem)

    @property
    def acting_bytes(self) -> int:
        """Memory that acting takes at least, for each of the candidates of a batch."""
        networks = self.num_critics if self.best_of_n > 1 else 1
        return 4 * (self.spaces.obs_dim + self.spaces.chunk_dim + networks * self.width)

    def acting_noise(self, n: int, generator: torch.Generator) -> Any:
        """Draw what `act` takes at n states: n · best_of_n rows of the policy's noise."""
        return self.policy_noise(NoiseSource(n * self.best_of_n, generator))

    @torch.no_grad()
    def act(self, s: Tensor, noise: Any) -> Tensor:
        """Return action chunks in [-1, 1], (n, H, A), at states (n, O): the best of N candidates.

        Args:
            s: (n, O).
            noise: what `acting_noise` draws; the N candidates of a state lie next to each other.
        """
        n, count = s.shape[0], self.best_of_n  # `len` would fix the batch in a graph
        s = self.obs_norm(s).repeat_interleave(count, 0)
        candidates = self.policy(s, noise)
        best = candidates
        if count > 1:
            scores = self.candidate_score(self.critic(s, candidates)).view(n, count)
            rows = torch.arange(n, device=scores.device)
            best = candidates.view(n, count, -1)[rows, scores.argmax(1)]
        return best.unflatten(-1, (self.spaces.horizon, self.spaces.action_dim))

    @torch.no_grad()
    def behavior_act(self, s: Tensor, noise: Any) -> Tensor:
        """Return chunks of the cloned behaviour, (n, H, A), from each state's first candidate."""
        first = map_noise(lambda x: x[:: self.best_of_n], noise)
        chunks = self.behavior_policy(self.obs_norm(s), first)
        return chunks.unflatten(-1, (self.spaces.horizon, self.spaces.action_dim))

    # Counters ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store how to rebuild the method, the counters, and the latest metrics.

        A delayed loss keeps the metrics of its last step. `Checkpoints` adds to the entry.
        """
        kind = type(self)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        names = TaskData.__annotations__ if isinstance(data, TaskData) else ()
        checkpoint[ENTRY] = {
            "format": FORMAT,
            "method": f"{kind.__module__}.{kind.__qualname__}",
            "model": dict(self.hparams),
            "environment": {name: getattr(data, name) for name in names},
            "versions": versions(),
            "hardware": hardware(self.device),
            "data": getattr(data, "identity", {}),
            "pretrained": self.pretrained and self.pretrained.model_dump(),
            "moments": [len(found["state"]) for found in checkpoint.get("optimizer_states", [])],
            **checkpoint.get(ENTRY, {}),
        }
        # The tensors of a training step are views of long vectors, which would be saved whole.
        for part in ("state_dict", "optimizer_states"):
            if part in checkpoint:
                checkpoint[part] = tree_map_only(Tensor, torch.clone, checkpoint[part])
        mean = self.trainer.strategy.reduce  # over ranks, as they are logged
        checkpoint["metrics"] = {n: mean(x.clone()).cpu() for n, x in self.metrics.items()}
        checkpoint["counters"] = {
            "gradient_step": self.gradient_step,
            "env_step": self.env_step,
            "phase": self.phase,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that all of a checkpoint fits, and restore the counters and metrics.

        Lightning calls this before anything else is restored.

        Raises:
            UserError: something in it is missing, damaged or of another method.
        """
        trainer: Any = self._trainer  # None where only the weights are loaded
        path = "checkpoint" if trainer is None else trainer.ckpt_path
        check_content(checkpoint, path)
        check_weights(checkpoint["state_dict"], self, path)
        if trainer is not None and trainer.state.fn == "fit":
            check_training(checkpoint, self, path)
        origin = checkpoint[ENTRY].get("pretrained")
        self.pretrained = origin and Clone.model_validate(origin)
        self.metrics = dict(checkpoint.get("metrics", {}))
        for name, value in checkpoint["counters"].items():
            setattr(self, name, value)
