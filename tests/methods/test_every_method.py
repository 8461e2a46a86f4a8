"""What must hold for every method there is; methods are found by looking at the folder."""

import importlib
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import qam_lightning.methods
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Cloner, Method
from qam_lightning.util.errors import UserError

FOLDER = Path(qam_lightning.methods.__file__).parent
Build = Callable[..., Method]


def discover() -> list[type[Method]]:
    """Return the one Method of every file of the folder except the contract."""
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        if path.stem in ("__init__", "base"):
            continue
        module = importlib.import_module(f"qam_lightning.methods.{path.stem}")
        here = [
            c
            for _, c in inspect.getmembers(module, inspect.isclass)
            if issubclass(c, Method) and c.__module__ == module.__name__
        ]
        assert len(here) == 1, f"{path.name} holds {len(here)} methods"
        found.append(here[0])
    return found


METHODS = discover()
EXAMPLE: dict[str, Any] = {
    "tau": 1.5,
    "residual": True,
    "alpha": 10.0,
    "edit_scale": 0.2,
    "kappa": 0.9,
    "noise_scale": 0.3,
    "eta": 2.0,
    "vartheta": 0.1,
    "varrho": 0.1,
}
"""A value for every hyperparameter that some method has beyond the shared ones."""


@pytest.fixture(params=METHODS, ids=lambda m: m.__name__)
def method(request: pytest.FixtureRequest, build: Build) -> Method:
    return make(request.param, build)


def test_heads_cite_and_tell_what_trains_what_and_what_differs(method: Method) -> None:
    head = inspect.getmodule(type(method)).__doc__
    title, *_ = head.splitlines()
    assert re.search(r"\(.*(Eq|Sec)\. [\dC]", title), "the title names equations or a section"
    sections = ("Citation", "Trained by what", "Differences from the paper's text")
    starts = [head.index(f"\n\n{section}\n    ") for section in sections]
    assert starts == sorted(starts)
    assert re.search(r"20\d\d|under review", head[starts[0] : starts[1]])


def make(kind: type[Method], build: Build, **changes: Any) -> Method:
    own = {k: v for k, v in EXAMPLE.items() if k in inspect.signature(kind.__init__).parameters}
    return build(kind, **{**own, **changes})


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
    spread(method)
    noise = method.step_noise(len(batch.rewards))
    s, backup = batch.next_observations, {n: noise[f"next/{n}"] for n in method.backup_draws()}
    if type(method).backup_value is Method.backup_value:
        q = method.critic_ema(s, method.policy(s, backup))
        value = q.mean(0) - method.rho * (q - q.mean(0)).square().mean(0).sqrt()
    else:  # tested where it is defined
        value = method.backup_value(s, backup)
    target = (batch.rewards + 0.97**2 * batch.masks * value).detach()
    error = batch.valid * (method.critic(batch.observations, batch.actions) - target).square()
    found = method.losses(batch, noise)[0]["critic/loss"]
    torch.testing.assert_close(found, error.mean(), rtol=1e-5, atol=1e-6)


ROUTES: dict[str, str | tuple[str, ...]] = {
    "critic/": "critic.",
    "value/": "value.",
    # flow_policy, flow_pair
    "actor/flow_loss": ("actor.behavior.", "actor.flow."),
    "actor/adjoint_loss": "actor.fine.",
    "actor/control_cost": "actor.fine.",
    "actor/value_loss": "actor.fine.",
    # heads
    "actor/distill_loss": "one_step.",
    "actor/edit_q_loss": "edit.gaussian.",
    "actor/edit_entropy_loss": "edit.gaussian.",
    "actor/edit_coefficient_loss": "edit.entropy_coefficient.",
    # the methods' own
    "actor/q_loss": ("one_step.", *(f"actor.{n}." for n in ("flow", "mlp", "gaussian")))
    + ("noise_policy.gaussian.",),
    "actor/bc_loss": "actor.mlp.",
    # soft_policy
    "actor/entropy_loss": ("actor.gaussian.", "noise_policy.gaussian."),
    "actor/coefficient_loss": ("actor.entropy_coef", "noise_policy.entropy_coef"),
    "latent/loss": "latent_critic.",
    # diffusion
    "actor/score_loss": "actor.predictor.",
    "actor/ascent_loss": "actor.predictor.",
    "actor/denoising_loss": "actor.predictor.",
}
"""Losses whose names start so train parameters whose names start so, and no others."""


def touched_by(method: Method, batch: Batch, name: str) -> set[str]:
    method.zero_grad()
    method.losses(batch, method.step_noise(len(batch.rewards)))[0][name].backward()
    return {n for n, p in method.named_parameters() if p.grad is not None and p.grad.any()}


def test_each_loss_trains_the_networks_it_is_named_for(method: Method, batch: Batch) -> None:
    trained: set[str] = set()
    for name in method.losses(batch, method.step_noise(len(batch.rewards)))[0]:
        touched = touched_by(method, batch, name)
        assert touched, f"{name} trains nothing"
        (route,) = (prefix for start, prefix in ROUTES.items() if name.startswith(start))
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
    noise = method.policy_noise(len(s), torch.Generator().manual_seed(3))
    actions = method.act(s, noise)
    assert actions.shape == (len(s), method.horizon, method.action_dim)
    assert actions.abs().max() <= 1 and not actions.requires_grad
    assert torch.equal(actions, method.act(s, noise))


def test_behaviour_is_cloned_or_said_to_be_missing(method: Method, batch: Batch) -> None:
    s = 3 * batch.observations
    noise = method.policy_noise(len(s), torch.Generator().manual_seed(3))
    if isinstance(method.actor, Cloner):
        cloned = method.behavior_act(s, noise)
        assert cloned.shape == (len(s), method.horizon, method.action_dim)
        assert cloned.abs().max() <= 1 and not cloned.requires_grad
    else:
        with pytest.raises(UserError, match=f"{type(method).__name__} clones no behaviour") as e:
            method.behavior_act(s, noise)
        assert "\n" not in str(e.value)


def test_best_of_n_takes_the_candidate_of_largest_merit(method: Method, batch: Batch) -> None:
    s, n = batch.observations, 8
    method.best_of_n = n
    noise = method.policy_noise(len(s), torch.Generator().manual_seed(3))
    best = method.act(s, noise).flatten(1)
    for row in range(len(s)):
        candidates = [
            method.policy(s[row : row + 1], {k: v[row : row + 1, i] for k, v in noise.items()})
            for i in range(n)
        ]
        values = [method.merit(method.critic(s[row : row + 1], a)).item() for a in candidates]
        winner = candidates[max(range(n), key=values.__getitem__)][0]
        torch.testing.assert_close(best[row], winner, rtol=1e-5, atol=1e-6)


def test_standardising_is_training_and_acting_on_standardised_observations(
    method: Method, build: Build, batch: Batch
) -> None:
    twin = make(type(method), build, standardize=True)
    twin.load_state_dict(method.state_dict(), strict=False)
    mean, std = batch.observations.mean(0), torch.linspace(0.0, 2.0, method.obs_dim)
    twin.seen.fit(mean, std)
    scale = std.clamp(min=0.01)
    s, t = ((x - mean) / scale for x in (batch.observations, batch.next_observations))
    other = update(method, batch._replace(observations=s, next_observations=t))
    torch.testing.assert_close(update(twin, batch), other)
    noise = method.policy_noise(len(s), torch.Generator().manual_seed(0))
    torch.testing.assert_close(twin.act(batch.observations, noise), method.act(s, noise))


def test_state_survives_saving(method: Method, build: Build, batch: Batch, tmp_path: Path) -> None:
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.01)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    twin = make(type(method), build)
    twin.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    noise = method.policy_noise(4, torch.Generator().manual_seed(0))
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
        ("horizon", 0),
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
    if name in EXAMPLE and name not in inspect.signature(type(method).__init__).parameters:
        pytest.skip(f"{type(method).__name__} has no {name}")
    with pytest.raises(UserError, match=f"{name} is {value}, expected") as caught:
        make(type(method), build, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_hyperparameter_is_infinite_but_the_alpha_of_plain_qam(
    method: Method, build: Build, value: float
) -> None:
    own = set(inspect.signature(type(method).__init__).parameters) & set(EXAMPLE) - {"residual"}
    for name in own | {"rho", "learning_rate"}:
        if (type(method).__name__, name, value) == ("QAMFQL", "alpha", math.inf):
            continue
        with pytest.raises(UserError, match=f"{name} is {value}, expected"):
            make(type(method), build, **{name: value})


@pytest.mark.parametrize("mode", ["norm", "value"])
def test_clipping_bounds_the_joint_gradient(build: Build, batch: Batch, mode: str) -> None:
    method = make(METHODS[0], build, grad_clip=0.01, grad_clip_mode=mode)
    update(method, batch)
    norm = method._clip_gradients()
    gradients = torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])
    assert norm > 0.01
    if mode == "norm":
        assert gradients.norm().item() == pytest.approx(0.01, rel=1e-3)
    else:
        assert gradients.abs().max().item() == pytest.approx(0.01)


@pytest.mark.slow
def test_compiled_losses_equal_eager_ones(build: Build, batch: Batch) -> None:
    eager, compiled = (make(METHODS[0], build, compile=flag) for flag in (False, True))
    noise = eager.step_noise(len(batch.rewards))
    for method in (eager, compiled):
        losses, _ = method.step_losses(batch, noise)
        torch.stack(list(losses.values())).sum().backward()
    for (name, p), q in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-6, msg=name)
