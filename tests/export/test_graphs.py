"""Acting as a graph: every method's ONNX model computes what the method does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from qam_lightning.export.graph import INPUTS, Acting, onnx_of, program_of, trace
from qam_lightning.methods.base import Method
from qam_lightning.methods.cgql import CGQL
from qam_lightning.methods.noise import NoiseSource, map_noise
from qam_lightning.methods.qam import QAM
from qam_lightning.util.errors import UserError
from qam_lightning.util.normal import Normal
from tests.methods.test_every_method import METHODS, Build, make, spread

SMALLEST = {"flow_steps": 2, "depth": 1, "width": 8, "standardize": True}


def candidates(kind: type[Method]) -> int:
    """Return a number of candidates; without a critic there is no choice among several."""
    return 3 if kind.has_critic else 1


def session(acting: Acting) -> Any:
    return onnxruntime.InferenceSession(onnx_of(program_of(trace(acting), acting.shapes)))


# An export takes seconds. By default: a critic's gradient; test_folder exports a flow.
ALL = [pytest.param(m, marks=() if m is CGQL else pytest.mark.slow, id=m.__name__) for m in METHODS]


@pytest.mark.parametrize("kind", ALL)
def test_every_method_is_a_graph(kind: type[Method], build: Build) -> None:
    """For several batches the graph computes what the method does, up to rounding.

    In double precision before PyTorch's ONNX exporter, which knows single precision alone.
    """
    method = make(kind, build, best_of_n=candidates(kind), **SMALLEST)
    spread(method)
    method.obs_norm.fit(torch.full((7,), 0.5), torch.full((7,), 2.0))
    compare(method.eval(), session(Acting(method)).run, 1e-5)
    double = Acting(method.double())
    module = trace(double).module
    compare(method, lambda _, given: [module(*map(torch.from_numpy, given.values()))], 1e-12)


def compare(method: Method, run: Callable[..., Any], tolerance: float) -> None:
    acting, like = Acting(method), next(method.parameters())
    generator = torch.Generator().manual_seed(2)
    for size in (1, 5):
        inputs = [torch.randn(size, *s, generator=generator).to(like) for s in acting.shapes]
        with torch.no_grad():
            expected = acting(*inputs).numpy()
            (found,) = run(None, dict(zip(INPUTS, (x.numpy() for x in inputs), strict=True)))
        assert found.shape == (size, method.spaces.horizon, method.spaces.action_dim)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


DENOISER = {"integrator": "denoiser", "sampler": "etd2", "grid_power": 2.0, "flow_steps": 3}
CASES = [(kind, changes) for kind in METHODS for changes in ({"best_of_n": 1}, {"depth": 3})]
CASES += [(QAM, DENOISER)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_other_sizes(kind: type[Method], changes: dict[str, Any], build: Build) -> None:
    method = make(kind, build, **{**SMALLEST, "standardize": False, **changes})
    spread(method)
    compare(method.eval(), session(Acting(method)).run, 1e-5)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_noise_without_torch_is_that_of_acting(kind: type[Method], build: Build) -> None:
    """The runtime draws what `Method.acting_noise` does, in the order of its draws."""
    n = candidates(kind)
    method = make(kind, build, best_of_n=n, **SMALLEST)
    parts: list[np.ndarray] = []
    drawn = method.acting_noise(1, torch.Generator().manual_seed(7))
    map_noise(lambda x: parts.append(x.flatten(1).numpy()), drawn)
    normal, draws = Normal(7), Acting(method).draws
    found = np.concatenate([normal(n * count).reshape(n, count) for count in draws], 1)
    np.testing.assert_allclose(found, np.concatenate(parts, 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3])
def test_normal_numbers_are_torchs(seed: int) -> None:
    generator, normal = torch.Generator().manual_seed(seed), Normal(seed)
    for count in (3, 1, 15, 16, 2, 17, 31, 32, 1, 100, 1000):
        expected = torch.randn(count, generator=generator).numpy()
        np.testing.assert_allclose(normal(count), expected, rtol=0, atol=2e-6)


class Uniform(QAM):
    """Draws uniform noise."""

    def policy_noise(self, draw: NoiseSource) -> Any:
        return super().policy_noise(draw)._replace(z=draw.uniform(self.dim))


class ReadsOnHost(QAM):
    """Acts in another way where the first state says so."""

    def policy(self, s: torch.Tensor, noise: Any) -> torch.Tensor:
        return super().policy(s, noise) if s[0, 0] > 0 else noise.z.tanh()


class UnknownOperation(QAM):
    """Acts with an operation that ONNX does not have."""

    def policy(self, s: torch.Tensor, noise: Any) -> torch.Tensor:
        return torch.special.bessel_j0(noise.z)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Uniform, "draws other than normal noise"),
        (ReadsOnHost, "is no graph of tensor operations: .+"),
        (UnknownOperation, "PyTorch's ONNX exporter: .*bessel_j0"),
    ],
)
def test_what_cannot_be_a_graph_says_why(kind: type[Method], reason: str, build: Build) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        session(Acting(make(kind, build, **SMALLEST).eval()))
    assert "\n" not in str(refused.value)
