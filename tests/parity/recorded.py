"""Read recorded reference cases: weights, batch, noise, losses, gradients and actions."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.data.spaces import Spaces
from qam_lightning.methods.base import Method
from qam_lightning.methods.noise import NoiseSource

PATHS = sorted((Path(__file__).parent / "cases").glob("*.npz"))
BATCH = 16  # of every recorded case
RELATIVE = 2e-4  # float32 rounding through ten network passes

Places = Mapping[str, str | None]
"""Recorded names of networks and where they go in ours; see :func:`translate`."""


class Case:
    """One recorded case."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as data:
            self.arrays = {name: data[name] for name in data.files}
        self.name = path.stem
        self.config: dict[str, Any] = json.loads(str(self.arrays.pop("config")))

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[name]))

    def scalar(self, name: str) -> float:
        return float(self.arrays[name])

    def spaces(self) -> Spaces:
        """Return the sizes the case was recorded with."""
        observations, actions = self.arrays["batch/observations"], self.arrays["batch/actions"]
        return Spaces(observations.shape[-1], actions.shape[-1], self.config["horizon_length"])

    def shared(self) -> dict[str, Any]:
        """Return the settings that every method has."""
        c = self.config
        width, *rest = json.loads(c["actor_hidden_dims"].replace("(", "[").replace(")", "]"))
        return {
            "spaces": self.spaces(),
            "discount": c["discount"],
            "rho": c["rho"],
            "num_critics": c["num_qs"],
            "flow_steps": c.get("flow_steps", 10),
            "width": width,
            "depth": 1 + len(rest),
            "learning_rate": c["lr"],
            "best_of_n": c.get("best_of_n", 1),
        }

    def batch(self) -> Batch:
        """Return the batch: per-step quantities are recorded cumulatively along the chunk."""
        get = lambda name: self.tensor(f"batch/{name}")  # noqa: E731
        rewards, masks, valid = get("rewards"), get("masks"), get("valid")
        return Batch(
            observations=get("observations"),
            actions=get("actions").flatten(1),
            rewards=rewards[:, -1],
            next_observations=get("next_observations")[:, -1],
            masks=masks[:, -1],
            valid=valid[:, -1],
        )

    def draws(self, prefix: str) -> list[Tensor]:
        """Return the recorded draws in the order they were made."""
        names = sorted(n for n in self.arrays if n.startswith(prefix + "/"))
        return [self.tensor(name) for name in names]

    def tree(self, prefix: str) -> dict[str, Tensor]:
        """Return all arrays below ``prefix``, keyed by the rest of their names."""
        start = prefix + "/"
        return {n[len(start) :]: self.tensor(n) for n in self.arrays if n.startswith(start)}


class Agent(NamedTuple):
    """How a recorded agent maps onto one of our methods."""

    method: type[Method]
    arguments: dict[str, str]  # ours -> theirs
    draws: list[str]  # in the recorded order
    terms: dict[str, str]  # theirs -> ours
    places: Places


CRITIC_TERMS = {
    "critic/critic_loss": "critic/loss",
    "critic/q_mean": "critic/q_mean",
    "critic/q_max": "critic/q_max",
    "critic/q_min": "critic/q_min",
}


def critics(*recorded: str) -> Places:
    """Return the places of value networks recorded under these names, and of their EMAs."""
    names = {"critic": "critic.", "value": "value.net."}
    return {
        f"{prefix}{name}/value_net": names[name].replace(".", f"{suffix}.", 1)
        for name in recorded
        for prefix, suffix in (("", ""), ("target_", "_ema"))
    }


def gaussian(recorded: str, ours: str) -> Places:
    """Return the places of a tanh-Gaussian policy and of its three networks."""
    return {
        f"{recorded}/MLP_0": f"{ours}trunk.",
        f"{recorded}/OutputDenseMean": f"{ours}mean.layers.0.",
        f"{recorded}/OutputDenseLogStd": f"{ours}log_std.layers.0.",
    }


def translate(tree: dict[str, Tensor], places: Places) -> dict[str, Tensor]:
    """Translate recorded parameters or gradients to our names and shapes.

    Args:
        tree: recorded name, such as ``modules_actor/mlp/Dense_0/kernel``, to value.
        places: where each network goes: the recorded name of the network (``actor/mlp``) to the
            start of our names (``actor.flow.mlp.``), of a single linear layer to its own
            (``actor.mean.``), or the full name of one array to ours, which takes it as it is. None
            for what has no place. Every array must have one.

    A network of kernels (K, in, out), or with LayerNorms, is an ensemble; any other is an MLP.
    """
    state = {}
    for name, value in tree.items():
        name = name.removeprefix("modules_")
        place = next(p for p in places if name == p or name.startswith(p + "/"))
        ours, rest = places[place], name.removeprefix(place).removeprefix("/")
        if ours is None:
            continue
        if not rest:
            state[ours] = value
        elif any(n.startswith(f"modules_{place}/LayerNorm_") for n in tree):
            depth = sum(n.startswith(f"modules_{place}/LayerNorm_") for n in tree) // 2
            state |= _ensemble_parameter(rest, value, ours, depth)
        else:
            state |= _mlp_parameter(rest, value, ours)
    return state


def _mlp_parameter(rest: str, value: Tensor, ours: str) -> dict[str, Tensor]:
    *layer, kind = rest.split("/")
    start = f"{ours}layers.{layer[0].removeprefix('Dense_')}." if layer else ours
    return {start + "weight": value.T} if kind == "kernel" else {start + "bias": value}


def _ensemble_parameter(rest: str, value: Tensor, ours: str, depth: int) -> dict[str, Tensor]:
    layer, kind = rest.split("/")
    layer, number = layer.split("_")
    if value.dim() == (2 if kind == "kernel" else 1):
        value = value[None]  # a value network is recorded as one network, not as one of many
    if layer == "LayerNorm":
        return {f"{ours}norms.{number}.{kind}": value[:, None, :]}
    start = f"{ours}out." if int(number) == depth else f"{ours}hidden.{number}."
    return {start + "weight": value} if kind == "kernel" else {start + "bias": value[:, None, :]}


def restore(case: Case, method: Method, places: Places) -> Method:
    """Load the recorded weights; every one of them and every one of ours must find its place."""
    method.load_state_dict(translate(case.tree("params"), places), strict=True)
    return method


def rebuild(case: Case, agent: Agent, **changes: Any) -> Method:
    """Build our method as it was recorded, with the recorded weights."""
    own = {ours: case.config[theirs] for ours, theirs in agent.arguments.items()}
    return restore(case, agent.method(**{**case.shared(), **own, **changes}), agent.places)


def check_agent(case: Case, agent: Agent) -> None:
    """Compare all losses and gradients of an agent with the recorded ones."""
    method = rebuild(case, agent)
    template = method.step_noise(BATCH)
    noise = fill(template, case.draws("loss_noise"), agent.draws)
    check_losses(case, method, noise, agent.terms, agent.places)


def acting_noise(method: Method, draws: Sequence[Tensor], names: Sequence[str]) -> Any:
    """Return recorded draws as one policy call at the batch's states takes them."""
    template = method.policy_noise(NoiseSource(BATCH, torch.Generator()))
    return fill(template, draws, names)


def leaves(noise: Any, path: str = "") -> dict[str, Tensor]:
    """Return the tensors of a noise by their dotted names, such as ``actor.cloning.u``."""
    if isinstance(noise, Tensor):
        return {path: noise}
    found: dict[str, Tensor] = {}
    for name, part in zip(getattr(noise, "_fields", ()), noise or (), strict=True):
        found |= leaves(part, f"{path}.{name}" if path else name)
    return found


def fill(template: Any, draws: Sequence[Tensor], names: Sequence[str]) -> Any:
    """Put recorded draws into a noise, each in the shape of the tensor that it replaces.

    Args:
        template: a noise of the type and shapes wanted.
        draws: in the order they were made. Draws of Gaussian heads are recorded (D, B) or
            (D, B, 1), some others (B, 1, D).
        names: dotted names in the same order; every tensor of the template must be named.
    """
    shapes = {name: tensor.shape for name, tensor in leaves(template).items()}
    assert set(names) == set(shapes)
    found = {}
    for name, x in zip(names, draws, strict=True):
        wide = shapes[name][-1]
        batch_first = x.shape[0] != wide or x.shape[-1] == wide
        x = x.flatten(1)
        found[name] = (x if batch_first else x.T).reshape(shapes[name])
    return named(template, found)


def named(template: Any, values: Mapping[str, Tensor], path: str = "") -> Any:
    """Return a noise of the template's type with the values of these dotted names."""
    if template is None or isinstance(template, Tensor):
        return values.get(path)
    names = (f"{path}.{name}" if path else name for name in template._fields)
    parts = (named(part, values, name) for part, name in zip(template, names, strict=True))
    return type(template)(*parts)


def check_losses(
    case: Case, method: Method, noise: Any, terms: Mapping[str, str], places: Places
) -> None:
    """Compare the summed loss, its named terms and all gradients with the recorded ones.

    Args:
        case: the recorded case.
        method: ours, with the recorded weights.
        noise: the recorded draws under our names.
        terms: recorded name of a term or metric to our name of a loss or metric.
        places: as for :func:`translate`.
    """
    losses, metrics = method.losses(case.batch(), noise)
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()
    assert loss.item() == pytest.approx(case.scalar("loss"), rel=RELATIVE)
    for theirs, ours in terms.items():
        if f"info/{theirs}" in case.arrays:
            found = {**losses, **metrics}[ours].item()
            assert found == pytest.approx(case.scalar(f"info/{theirs}"), rel=RELATIVE), ours
    recorded = translate(case.tree("grads"), places)
    parameters = dict(method.named_parameters())
    assert set(parameters) == set(recorded)
    for name, parameter in parameters.items():
        expected = recorded[name]
        found = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
        tolerance = RELATIVE * expected.abs().max().item() + 1e-7
        close = torch.allclose(found, expected, rtol=RELATIVE, atol=tolerance)
        assert close, f"{name}: off by {(found - expected).abs().max()}, allowed {tolerance}"


def finite_or_inf(value: float) -> float:
    """Return α as our methods read it: the reference marks plain QAM by 0."""
    return value if value > 0 else math.inf
