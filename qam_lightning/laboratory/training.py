"""Trains a method's policy, and nothing else: Q and the behaviour's flow are exact."""

import itertools
import math
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.core.adjoint import VJP
from qam_lightning.core.flow import Field
from qam_lightning.data.batch import Batch
from qam_lightning.data.spaces import Spaces
from qam_lightning.laboratory.distances import sliced_wasserstein
from qam_lightning.laboratory.problems import Mixture, Problem
from qam_lightning.methods.base import Method
from qam_lightning.methods.noise import NoiseSource
from qam_lightning.nets.critic import TimeConditionedCritic
from qam_lightning.nets.frozen import ema_copy
from qam_lightning.util.configs import METHODS
from qam_lightning.util.errors import ArgumentError, UserError
from qam_lightning.util.rng import Stream, torch_generator

BATCH, LEARNING_RATE, EMA_RATE = 64, 5e-3, 0.02
SHARED: dict[str, Any] = {
    "discount": 1.0,
    "rho": 0.0,  # equal members have no spread
    "num_critics": 2,
    "width": 64,
    "depth": 2,
    "learning_rate": LEARNING_RATE,
    "grad_clip": 0.0,
    "target_rate": EMA_RATE,
}

SHORTER = 3
"""How many times shorter the trainings are that choose hyperparameters."""

Values = Mapping[str, float]


class ExactCritic(nn.Module):
    """K equal members Q_k = Q, in place of a method's critics.

    Args:
        q: the exact Q, points (B, D) to values (B,).
        members: K.
        noisy: critics of noisy actions, which remain to be learned; None if the method has none.
    """

    def __init__(self, q: Callable[[Tensor], Tensor], members: int, noisy: nn.Module | None):
        """Keep the parts."""
        super().__init__()
        self.q, self.members, self.noisy = q, members, noisy

    def forward(self, s: Tensor, a: Tensor, *u: Tensor) -> Tensor:
        """Return the values (K, B): exact ones of clean actions, learned ones at flow time u."""
        if u and self.noisy is not None:
            return self.noisy(s, a, *u)
        return self.q(a).expand(self.members, -1)

    def at(self, s: Tensor) -> Callable[..., Tensor]:
        """Return the values (K, B) at states s as a function of a and u."""
        return lambda *inputs: self(s, *inputs)


class ExactFlow(nn.Module):
    """The behaviour's flow in closed form, in place of a method's clone.

    Args:
        behavior: π_β.
    """

    def __init__(self, behavior: Mixture) -> None:
        """Keep the mixture."""
        super().__init__()
        self.behavior, self.dim = behavior, behavior.means.shape[1]

    def at(self, s: Tensor) -> Field:
        """Return the field; there is one state only."""
        return self.behavior.velocity

    def linearize(self, s: Tensor, states: Tensor, times: Tensor) -> VJP:
        """Return the product with the field's Jacobian, as a velocity network does."""
        with torch.enable_grad():
            x = states.detach().requires_grad_()
            v = self.behavior.velocity(x, times[:, None, None]).sum((0, 1))
            rows = [torch.autograd.grad(y, x, retain_graph=True)[0] for y in v]
        jacobian = torch.stack(rows, -2)
        return lambda i, g: (g[:, None] @ jacobian[i])[:, 0]


class Recipe(NamedTuple):
    """How a method is built, read from its configuration.

    Attributes:
        kind: its class.
        fixed: the arguments its configuration sets for all domains.
        tuned: the arguments tuned by domain, each with its distinct values there.
    """

    kind: type[Method]
    fixed: dict[str, Any]
    tuned: dict[str, tuple[float, ...]]


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qam_denoiser": ("qam", {"integrator": "denoiser", "grid_power": 2.0, "sampler": "etd2"}),
}
"""Methods with further settings, by a name of their own."""


def recipes(folder: Path = METHODS) -> dict[str, Recipe]:
    """Return the recipes of all methods that have a configuration, by its name, and variants."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        module, _, name = config["model"]["class_path"].rpartition(".")
        arguments = config["model"].get("init_args", {})
        domains = config.get("tuned", {}).values()
        tuned = {
            key: tuple(sorted({float(d[key]) for d in domains if key in d}))
            for key, value in arguments.items()
            if "${" in str(value)
        }
        fixed = {key: value for key, value in arguments.items() if key not in tuned}
        found[path.stem] = Recipe(getattr(import_module(module), name), fixed, tuned)
    for name, (base, changes) in VARIANTS.items():
        if base in found:
            found[name] = found[base]._replace(fixed={**found[base].fixed, **changes})
    return found


SCANS: dict[str, dict[str, tuple[float, ...]]] = {
    "cgql": {"vartheta": (0.003, 0.01, 0.03, 0.1, 0.3)},
    "cgql_linex": {"vartheta": (0.003, 0.01, 0.03, 0.1, 0.3), "varrho": (1.0,)},
    "cgql_mse": {"vartheta": (0.003, 0.01, 0.03, 0.1, 0.3), "varrho": (1.0,)},
    "dsrl": {"noise_scale": (0.5, 1.0, 2.0, 4.0)},
    "fbrac": {"alpha": (0.3, 1.0, 3.0, 10.0)},
    "fedit": {"edit_scale": (0.2, 0.4, 0.8)},
    "fql": {"alpha": (0.1, 0.3, 1.0, 3.0, 10.0)},
    "ifql": {"kappa": (0.9,), "best_of_n": (2, 4, 8, 32)},
    "qam_edit": {"edit_scale": (0.1, 0.3)},
    "qam_fql": {"alpha": (10.0, 100.0)},
    "qsm": {"eta": (0.3, 1.0, 3.0, 10.0)},
    "trqam": {"budget": (0.3, 1.0, 3.0)},
    "rebrac": {"alpha": (1.0, 3.0, 10.0), "noise_scale": (0.1, 0.2, 0.3)},
}
"""Values tried where a hyperparameter is no temperature. Those that have no effect on a policy
learned from an exact Q have one value. A method that is not here tries what it was tuned to."""


def candidates(name: str, recipe: Recipe, tau: float, flow_steps: int) -> list[dict[str, float]]:
    """Return the hyperparameters to try: the true τ where there is one, else a small grid."""
    choices = {**recipe.tuned, **SCANS.get(name, {})}
    if name == "bam":  # sums its cost over the T steps, without the h of an integral
        choices["tau"] = (tau, tau * flow_steps)
    elif "tau" in choices:
        choices["tau"] = (tau,)
    elif name == "dac":  # tends to the tilt with τ = 1 / (2η)
        choices["eta"] = tuple(scale / (2.0 * tau) for scale in (0.3, 1.0, 3.0))
    return [dict(zip(choices, v, strict=True)) for v in itertools.product(*choices.values())]


class Effort(NamedTuple):
    """How much is spent on one training.

    Attributes:
        steps: gradient steps.
        flow_steps: T, when training and when sampling.
        samples: points drawn from the trained policy.
    """

    steps: int
    flow_steps: int
    samples: int


def build(recipe: Recipe, values: Values, problem: Problem, flow_steps: int, seed: int) -> Method:
    """Build a small method, with the exact Q for its critics and the exact flow for its clone."""
    own = {"flow_steps": flow_steps, "seed": seed}
    torch.manual_seed(seed)
    spaces = Spaces(obs_dim=1, action_dim=problem.dim)
    method = recipe.kind(spaces, **{**SHARED, **recipe.fixed, **values, **own})
    if method.has_critic:
        noisy = method.critic if isinstance(method.critic, TimeConditionedCritic) else None
        exact = ExactCritic(problem.q, method.critic.members, noisy)
        method.add_module("critic", exact)
        method.add_module("critic_ema", ema_copy(exact))
    if method.clones_behavior:
        method.add_module("behavior", ExactFlow(problem.behavior))
        if "behavior_ema" in dict(method.named_children()):
            method.add_module("behavior_ema", ExactFlow(problem.behavior))
    return method


def check(name: str, recipe: Recipe, problem: Problem, flow_steps: int) -> None:
    """Check that a method can be built with so many flow steps, before any is trained.

    Raises:
        UserError: it cannot.
    """
    values = candidates(name, recipe, problem.tau, flow_steps)[0]
    try:
        build(recipe, values, problem, flow_steps, seed=0)
    except ArgumentError as error:
        if error.name != "flow_steps":
            raise
        raise UserError(f"--flow_steps {error.problem}, for --methods {name}") from None


def fit(method: Method, problem: Problem, steps: int) -> None:
    """Minimise the actor's losses on fresh samples of the behaviour, with a decaying step size."""
    trained = [p for p in method.parameters() if p.requires_grad]
    if not trained:
        return  # its clone is all there is
    optimizer = torch.optim.Adam(trained, lr=method.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    targets = EmaTargets(method.target_rate)
    pairs = method.ema_pairs()
    leaders = [p for online, _ in pairs for p in online.parameters()]
    followers = [p for _, target in pairs for p in target.parameters()]
    generator = torch_generator(method.seed, Stream.LABORATORY, 1)
    for _ in range(steps):
        batch = behavior_batch(problem, BATCH, generator)
        noise = method.actor_noise(NoiseSource(BATCH, generator))
        losses, metrics = method.actor_losses(batch, noise)
        loss = torch.stack(list(losses.values())).sum()
        if not loss.requires_grad:
            return  # it acts by Q and the behaviour's flow alone
        optimizer.zero_grad()
        loss.backward()
        targets.move(followers, leaders)
        method.adapt(metrics)
        optimizer.step()
        schedule.step()


def behavior_batch(problem: Problem, size: int, generator: torch.Generator) -> Batch:
    """Return fresh actions of the behaviour in the one state there is."""
    s, zero = torch.zeros(size, 1), torch.zeros(size)
    a = problem.behavior.sample(size, generator).clamp(-1.0 + 1e-5, 1.0 - 1e-5)
    return Batch(s, a, rewards=zero, next_observations=s, masks=zero + 1, valid=zero + 1)


def policy_sample(method: Method, n: int) -> Tensor:
    """Draw n actions of the trained policy, (n, D)."""
    generator = torch_generator(method.seed, Stream.LABORATORY, 2)
    return method.act(torch.zeros(n, 1), method.acting_noise(n, generator))[:, 0]


def run(recipe: Recipe, values: Values, problem: Problem, effort: Effort, seed: int) -> Tensor:
    """Train one policy and return samples of it, (n, D)."""
    method = build(recipe, values, problem, effort.flow_steps, seed)
    fit(method, problem, effort.steps)
    return policy_sample(method, effort.samples)


def best_of(
    name: str, recipe: Recipe, problem: Problem, effort: Effort, seeds: int
) -> tuple[dict[str, float], Tensor]:
    """Choose among the candidates by a short training each, and train the chosen with all seeds.

    Returns:
        The hyperparameters nearest to the tilt by sliced W1, and samples (seeds, n, D) of theirs.
    """
    target, choices = (
        tilt_sample(problem, effort.samples),
        candidates(name, recipe, problem.tau, effort.flow_steps),
    )
    brief = effort._replace(steps=max(1, effort.steps // SHORTER))

    def distance(values: Values) -> float:
        found = sliced_wasserstein(run(recipe, values, problem, brief, seeds), target)
        return math.inf if math.isnan(found) else found

    values = min(choices, key=distance) if len(choices) > 1 else choices[0]
    samples = [run(recipe, values, problem, effort, seed) for seed in range(seeds)]
    return values, torch.stack(samples)


def tilt_sample(problem: Problem, n: int, number: int = 0) -> Tensor:
    """Return the exact sample number ``number`` of the tilt, (n, D)."""
    return problem.sample_tilt(n, torch_generator(n, Stream.LABORATORY, 3, number))
