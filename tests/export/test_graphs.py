"""Acting as a graph: every method's ONNX model computes what the method does."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from qam_lightning.export.graph import Acting, trace
from qam_lightning.export.onnx_graph import onnx_model
from qam_lightning.methods.base import Method
from qam_lightning.methods.noise import NoiseSource, map_noise
from qam_lightning.methods.qam import QAM
from qam_lightning.util.errors import UserError
from qam_lightning.util.normal import Normal
from tests.methods.test_every_method import METHODS, Build, make, spread
from tests.thinning import thinned

SMALLEST = {"flow_steps": 2, "depth": 1, "width": 8, "standardize": True}


def session(acting: Acting) -> Any:
    model = onnx_model(trace(acting).module, ("observation", "noise"), "chunk")
    return onnxruntime.InferenceSession(model.SerializeToString())


def compare(method: Method, tolerance: float) -> None:
    """Compare a method with its ONNX model, for several batches."""
    acting = Acting(method)
    run, like = session(acting), next(method.parameters())
    generator = torch.Generator().manual_seed(2)
    for size in (1, 5):
        inputs = [torch.randn(size, *s, generator=generator).to(like) for s in acting.shapes]
        names = ("observation", "noise")
        given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        (found,) = run.run(None, given)
        assert found.shape == (size, method.spaces.horizon, method.spaces.action_dim)
        np.testing.assert_allclose(found, acting(*inputs).numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_every_method_is_an_onnx_graph(kind: type[Method], build: Build) -> None:
    """In double precision nothing but rounding is left, gradients of a critic included."""
    method = make(kind, build, best_of_n=3, **SMALLEST)
    spread(method)
    if method.standardize:
        method.obs_norm.fit(torch.full((7,), 0.5), torch.full((7,), 2.0))
    compare(method.double().eval(), 1e-12)


CASES = [(kind, changes) for kind in METHODS for changes in ({"best_of_n": 1}, {"depth": 3})]


@pytest.mark.parametrize(("kind", "changes"), thinned(CASES, 9))
def test_other_sizes(kind: type[Method], changes: dict[str, Any], build: Build) -> None:
    method = make(kind, build, **{**SMALLEST, "standardize": False, **changes})
    spread(method)
    compare(method.eval(), 1e-5)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_noise_without_torch_is_that_of_acting(kind: type[Method], build: Build) -> None:
    """The runtime draws what `Method.acting_noise` does, in the order of its draws."""
    method = make(kind, build, best_of_n=3, **SMALLEST)
    parts: list[np.ndarray] = []
    drawn = method.acting_noise(1, torch.Generator().manual_seed(7))
    map_noise(lambda x: parts.append(x.flatten(1).numpy()), drawn)
    normal, draws = Normal(7), Acting(method).draws
    found = np.concatenate([normal(3 * n).reshape(3, n) for n in draws], 1)
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
    """Acts with an operation that has no translation."""

    def policy(self, s: torch.Tensor, noise: Any) -> torch.Tensor:
        return torch.cumsum(super().policy(s, noise), 1).clamp(-1, 1)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Uniform, "draws other than normal noise"),
        (ReadsOnHost, "is no graph of tensor operations: .+"),
        (UnknownOperation, r"takes the operation aten\.cumsum, which is unknown"),
    ],
)
def test_what_cannot_be_a_graph_says_why(kind: type[Method], reason: str, build: Build) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        session(Acting(make(kind, build, **SMALLEST).eval()))
    assert "\n" not in str(refused.value)
