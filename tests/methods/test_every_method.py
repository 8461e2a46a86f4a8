"""What must hold for every method there is; methods are found by looking at the folder."""

import collections
import copy
import dataclasses
import importlib
import inspect
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import qam_lightning.methods
from qam_lightning.data.batch import Batch
from qam_lightning.data.spaces import Spaces
from qam_lightning.methods.base import Method
from qam_lightning.methods.bc import BC
from qam_lightning.methods.noise import map_noise
from qam_lightning.methods.qam import QAM
from qam_lightning.nets.critic import BatchedLinear
from qam_lightning.util.errors import ArgumentError, UserError
from tests.methods.paper import TABLE_4

FOLDER = Path(qam_lightning.methods.__file__).parent
Build = Callable[..., Method]


def discover() -> list[type[Method]]:
    """Return the methods of all files in the folder: those that do not leave their actor open."""
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        module = importlib.import_module(f"qam_lightning.methods.{path.stem}")
        found += [
            kind
            for _, kind in inspect.getmembers(module, inspect.isclass)
            if issubclass(kind, Method) and kind.__module__ == module.__name__
        ]
    return [kind for kind in found if kind.actor_losses is not Method.actor_losses]


def settings(kind: type[Method]) -> dict[str, dataclasses.Field[Any]]:
    """Return a method's settings by name."""
    return {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


METHODS = discover()
FAMILIES = ("BAM", "CGQL", "DAC", "IFQL", "QAM", "ReBRAC", "TRQAM")
assert {*FAMILIES} <= {m.__name__ for m in METHODS}
SOME_METHODS = [
    pytest.param(m, marks=() if m.__name__ in FAMILIES else pytest.mark.slow, id=m.__name__)
    for m in METHODS
]
"""For tests that take long: one method of each kind in the default suite, all in the long one."""
EXAMPLE: dict[str, Any] = {
    "tau": 1.5,
    "alpha": 10.0,
    "edit_scale": 0.2,
    "kappa": 0.9,
    "noise_scale": 0.3,
    "eta": 2.0,
    "vartheta": 0.1,
    "varrho": 0.1,
}
"""Values for the settings that the paper tunes per domain; others' methods get their defaults."""


@pytest.fixture(params=METHODS, ids=lambda m: m.__name__)
def method(request: pytest.FixtureRequest, build: Build) -> Method:
    return make(request.param, build)


PAPER = [kind for kind in METHODS if kind.__module__.split(".")[-1] in TABLE_4]
"""The paper's methods; a method from elsewhere passes the other tests without being listed."""


@pytest.mark.parametrize("kind", PAPER, ids=lambda m: m.__name__)
def test_heads_cite_and_tell_what_trains_what_and_what_differs(kind: type[Method]) -> None:
    head = inspect.getmodule(kind).__doc__
    title, *_ = head.splitlines()
    assert re.search(r"\(.*(Eq|Sec)\. [\dC]", title), "the title names equations or a section"
    sections = ("Citation", "Trained by what", "Differences from the paper's text")
    starts = [head.index(f"\n\n{section}\n    ") for section in sections]
    assert starts == sorted(starts)
    assert re.search(r"20\d\d|under review", head[starts[0] : starts[1]])


def make(kind: type[Method], build: Build, **changes: Any) -> Method:
    """Build a small method; a setting without default and example is set to 1."""
    needed = {
        name: EXAMPLE.get(name, 1.0)
        for name, field in settings(kind).items()
        if field.default is dataclasses.MISSING and name != "spaces"
    }
    return build(kind, **{**needed, **changes})


def spread(method: Method) -> None:
    """Move weights away from their start, so that values and averages differ."""
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))


def update(method: Method, batch: Batch) -> torch.Tensor:
    """One gradient of the summed losses, without an optimizer."""
    losses, _ = method.losses(batch, method.step_noise(len(batch.rewards)))
    loss = torch.stack(list(losses.values())).sum()
    method.zero_grad()
    loss.backward()
    return loss


def test_the_critic_learns_the_discounted_pessimistic_value_of_its_average(
    method: Method, batch: Batch
) -> None:
    if not method.has_critic:
        pytest.skip(f"{type(method).__name__} has no critic")
    spread(method)
    noise = method.step_noise(len(batch.rewards))
    s = batch.next_observations
    if type(method).next_value is Method.next_value:
        q = method.critic_ema(s, method.policy(s, noise.next))
        value = q.mean(0) - method.rho * (q - q.mean(0)).square().mean(0).sqrt()
    else:  # tested where it is defined
        value = method.next_value(s, noise.next)
    target = (batch.rewards + 0.97**2 * batch.masks * value).detach()
    error = batch.valid * (method.critic(batch.observations, batch.actions) - target).square()
    found = method.losses(batch, noise)[0]["critic/loss"]
    torch.testing.assert_close(found, error.mean(), rtol=1e-5, atol=1e-6)


class Rows:
    """The inputs of every layer that was called, as rows, by the memory of its weights."""

    def __init__(self) -> None:
        self.of: dict[int, list[torch.Tensor]] = collections.defaultdict(list)

    def __call__(self, layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(layer, torch.nn.Linear | BatchedLinear):
            x = inputs[0].detach()
            x = x[0] if isinstance(layer, BatchedLinear) else x  # the first member's
            self.of[layer.weight.data_ptr()].append(x.flatten(0, -2))

    def most_repeated(self) -> int:
        """Return how many rows the layer with most repetitions has seen before."""
        every = [torch.cat(calls) for calls in self.of.values()]
        return max(len(rows) - len(rows.round(decimals=9).unique(dim=0)) for rows in every)


def test_an_update_evaluates_no_network_twice_at_the_same_input(
    method: Method, batch: Batch
) -> None:
    spread(method.double())
    noise = map_noise(torch.Tensor.double, method.step_noise(len(batch.rewards)))
    batch, rows = Batch(*(x.double() for x in batch)), Rows()
    hook = register_module_forward_pre_hook(rows)
    method.losses(batch, noise)
    hook.remove()
    # A diffusion's T + 1 step numbers are embedded twice, once without gradient.
    assert rows.of and rows.most_repeated() <= method.flow_steps + 1 < len(batch.rewards)


ROUTES: dict[str, str | tuple[str, ...]] = {
    "critic/": "critic.",
    "value/": "value.",
    "latent/loss": "latent_critic.",
    "actor/flow_loss": ("behavior.", "flow."),
    "actor/adjoint_loss": "fine_tuned.",
    "actor/control_cost": "fine_tuned.",
    "actor/value_loss": "fine_tuned.",
    "actor/q_loss": ("one_step.", "flow.", "actor.", "noise_policy."),
    "actor/distill_loss": "one_step.",
    "actor/bc_loss": "actor.",
    "actor/edit_q_loss": "edit.",
    "actor/edit_entropy_loss": "edit.",
    "actor/edit_coefficient_loss": "entropy_coefficient.",
    "actor/entropy_loss": ("actor.", "noise_policy."),
    "actor/coefficient_loss": "entropy_coefficient.",
    "actor/score_loss": "actor.",
    "actor/ascent_loss": "actor.",
    "actor/denoising_loss": "actor.",
}
"""The paper's losses whose names start so train parameters whose names start so, and no others."""


def touched_by(method: Method, batch: Batch, name: str) -> set[str]:
    method.zero_grad()
    method.losses(batch, method.step_noise(len(batch.rewards)))[0][name].backward()
    return {n for n, p in method.named_parameters() if p.grad is not None and p.grad.any()}


def test_each_loss_trains_the_networks_it_is_named_for(method: Method, batch: Batch) -> None:
    trained: set[str] = set()
    for name in method.losses(batch, method.step_noise(len(batch.rewards)))[0]:
        touched = touched_by(method, batch, name)
        assert touched, f"{name} trains nothing"
        for start, route in ROUTES.items():
            if type(method) in PAPER and name.startswith(start):
                assert all(n.startswith(route) for n in touched), name
        trained |= touched
    assert trained == {n for n, p in method.named_parameters() if p.requires_grad}


def test_targets_take_no_gradient_and_pair_with_their_networks(method: Method) -> None:
    pairs = method.ema_pairs()
    assert pairs
    for online, target in pairs:
        assert all(p.requires_grad for p in online.parameters())
        assert not any(p.requires_grad for p in target.parameters())
        for p, q in zip(online.parameters(), target.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), q)


def test_a_frozen_behaviour_is_not_cloned_and_costs_nothing(
    method: Method, build: Build, batch: Batch
) -> None:
    kind = type(method)
    if not method.clones_behavior or kind is BC:
        with pytest.raises(ArgumentError, match="freeze_behavior is True, "):
            make(kind, build, freeze_behavior=True)
        return
    frozen, weight = make(kind, build, freeze_behavior=True), "mlp.layers.1.weight"
    found, passed = [], []
    for one in (method, frozen):
        rows, noise = Rows(), one.step_noise(len(batch.rewards))
        hook = register_module_forward_pre_hook(rows)
        found.append(set(one.losses(batch, noise)[0]))
        hook.remove()
        passed.append(sum(map(len, rows.of[one.behavior.get_parameter(weight).data_ptr()])))
    assert found[0] - found[1] == {"actor/flow_loss"} and found[1] < found[0]
    assert passed[0] - passed[1] == len(batch.rewards)
    trained = {id(p) for p in frozen.configure_optimizers().param_groups[0]["params"]}
    assert not trained & {id(p) for p in frozen.behavior.parameters()}


def test_a_step_is_a_function_of_seed_step_batch_and_weights(
    method: Method, build: Build, batch: Batch
) -> None:
    twin = make(type(method), build)
    assert torch.equal(update(method, batch), update(twin, batch))
    for p, q in zip(method.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)
    twin.gradient_step = 1
    assert not torch.equal(update(method, batch), update(twin, batch))


def test_cut_chunks_carry_no_weight(method: Method, batch: Batch) -> None:
    """Changing the actions of an invalid chunk changes no loss that learns from its actions."""
    noise = method.step_noise(len(batch.rewards))
    cut = (batch.valid == 0)[:, None]
    assert cut.any()
    other = batch._replace(actions=torch.where(cut, -batch.actions, batch.actions))
    before, after = method.losses(batch, noise)[0], method.losses(other, noise)[0]
    learners = {"critic/loss", "critic/noisy_loss", "actor/flow_loss", "actor/denoising_loss"}
    for name in (learners | {"actor/score_loss", "actor/ascent_loss"}) & set(before):
        assert torch.equal(before[name], after[name])


def test_acting_is_bounded_shaped_and_repeatable(method: Method, batch: Batch) -> None:
    s = 3 * batch.observations
    noise = method.acting_noise(len(s), torch.Generator().manual_seed(3))
    actions = method.act(s, noise)
    assert actions.shape == (len(s), *method.spaces[:0:-1])
    assert actions.abs().max() <= 1 and not actions.requires_grad
    assert torch.equal(actions, method.act(s, noise))


def test_behaviour_is_cloned_or_said_to_be_missing(method: Method, batch: Batch) -> None:
    s = 3 * batch.observations
    noise = method.acting_noise(len(s), torch.Generator().manual_seed(3))
    if method.clones_behavior:
        cloned = method.behavior_act(s, noise)
        assert cloned.shape == (len(s), *method.spaces[:0:-1])
        assert cloned.abs().max() <= 1 and not cloned.requires_grad
    else:
        with pytest.raises(UserError, match=f"{type(method).__name__} clones no behaviour") as e:
            method.behavior_act(s, noise)
        assert "\n" not in str(e.value)


def test_best_of_n_takes_the_candidate_of_largest_score(method: Method, batch: Batch) -> None:
    if not method.has_critic:
        with pytest.raises(ArgumentError, match="best_of_n is 8, expected 1, as there is no crit"):
            type(method)(**{**method.hparams, "best_of_n": 8})
        return
    s, n = batch.observations, 8
    method.best_of_n = n
    noise = method.acting_noise(len(s), torch.Generator().manual_seed(3))
    best = method.act(s, noise).flatten(1)
    for row in range(len(s)):
        state = s[row : row + 1]
        candidates = [
            method.policy(state, map_noise(lambda x, j=row * n + i: x[j : j + 1], noise))
            for i in range(n)
        ]
        values = [method.candidate_score(method.critic(state, a)).item() for a in candidates]
        winner = candidates[max(range(n), key=values.__getitem__)][0]
        torch.testing.assert_close(best[row], winner, rtol=1e-5, atol=1e-6)


def test_standardising_is_training_and_acting_on_standardised_observations(
    method: Method, build: Build, batch: Batch
) -> None:
    twin = make(type(method), build, standardize=True)
    twin.load_state_dict(method.state_dict(), strict=False)
    mean, std = batch.observations.mean(0), torch.linspace(0.0, 2.0, method.spaces.obs_dim)
    twin.obs_norm.fit(mean, std)
    scale = std.clamp(min=0.01)
    s, t = ((x - mean) / scale for x in (batch.observations, batch.next_observations))
    other = update(method, batch._replace(observations=s, next_observations=t))
    torch.testing.assert_close(update(twin, batch), other)
    noise = method.acting_noise(len(s), torch.Generator().manual_seed(0))
    torch.testing.assert_close(twin.act(batch.observations, noise), method.act(s, noise))


def test_state_survives_saving(method: Method, build: Build, batch: Batch, tmp_path: Path) -> None:
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.01)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    twin = make(type(method), build)
    twin.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    noise = method.acting_noise(4, torch.Generator().manual_seed(0))
    s = batch.observations[:4]
    assert torch.equal(method.act(s, noise), twin.act(s, noise))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rho", -0.1),
        ("num_critics", 0),
        ("flow_steps", 0),
        ("learning_rate", 0.0),
        ("lr_decay_steps", -1),
        ("grad_clip", -1.0),
        ("discount", 0.0),
        ("best_of_n", 0),
        ("tau", -1.0),
        ("alpha", -1.0),
        ("kappa", 0.0),
        ("kappa", 1.0),
        ("edit_scale", -0.1),
        ("noise_scale", -0.1),
        ("eta", -0.1),
        ("vartheta", -0.1),
        ("varrho", -0.1),
    ],
)
def test_values_out_of_range_are_named(
    method: Method, build: Build, name: str, value: float
) -> None:
    if name in EXAMPLE and name not in settings(type(method)):
        pytest.skip(f"{type(method).__name__} has no {name}")
    match = f"^{type(method).__name__}: {name} is {value}, expected"
    with pytest.raises(ArgumentError, match=match) as caught:
        make(type(method), build, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_hyperparameter_is_infinite_but_the_alpha_of_plain_qam(
    method: Method, build: Build, value: float
) -> None:
    own = set(settings(type(method))) & set(EXAMPLE)
    for name in own | {"rho", "learning_rate"}:
        if (type(method).__name__, name, value) == ("QAMFQL", "alpha", math.inf):
            continue
        with pytest.raises(UserError, match=f"{name} is {value}, expected"):
            make(type(method), build, **{name: value})


def test_settings_are_checked_completed_and_typed(build: Build) -> None:
    """A notebook gets the command line's checks, and a misspelt setting is an error."""
    method = QAM(Spaces(3, 2), tau=3.0)
    assert (method.tau, method.num_critics, method.grad_clip) == (3.0, 10, 1.0)
    assert dict(method.hparams)["spaces"] == {"obs_dim": 3, "action_dim": 2, "horizon": 1}
    assert QAM(**{**method.hparams, "width": 8}).width == 8
    scalars = QAM(Spaces(3, 2), tau=np.float64(3), width=np.int64(8))
    assert (type(scalars.tau), type(scalars.hparams["width"])) == (float, int)
    with pytest.raises(TypeError, match="tua"):
        QAM(Spaces(3, 2), tua=3.0)  # type: ignore[call-arg]
    for wrong in (Spaces(3, 0), Spaces(0, 1), Spaces(1, 1, 0)):
        with pytest.raises(ArgumentError, match="is 0, expected at least 1"):
            QAM(wrong, tau=3.0)
    wrong: dict[str, tuple[Any, str]] = {
        "flow_steps": (10.0, "10.0, expected an integer"),
        "best_of_n": (True, "True, expected an integer"),
        "tau": ("3", "'3', expected a number"),
        "rho": (None, "None, expected a number"),
        "standardize": (1, "1, expected true or false"),
    }
    for name, (value, told) in wrong.items():
        with pytest.raises(ArgumentError, match=f"^QAM: {name} is {told}"):
            QAM(Spaces(3, 2), **{"tau": 3, name: value})
    with pytest.raises(ArgumentError, match="grad_clip_mode is max, expected one of norm, value"):
        QAM(Spaces(3, 2), tau=3.0, grad_clip_mode="max")  # type: ignore[arg-type]


def test_modules_can_be_copied_and_pickled(method: Method) -> None:
    for twin in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert dict(twin.hparams) == dict(method.hparams)
        for p, q in zip(method.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q)
