"""Fixtures and builders that several rooms' tests share."""

import contextlib
import http.server
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from qam_lightning.util.imports import uncollected

with uncollected():  # every process of the tests imports these
    import lightning.pytorch.cli  # noqa: F401
    import torch

    from qam_lightning.data.batch import Batch
    from qam_lightning.data.generate import generate
    from qam_lightning.data.spaces import Spaces
    from qam_lightning.methods.base import Method
    from qam_lightning.util import arguments

Server = TypeVar("Server", bound=http.server.HTTPServer)
SPACES = Spaces(obs_dim=7, action_dim=3, horizon=2)
SMALL: dict[str, Any] = {
    "discount": 0.97,
    "num_critics": 3,
    "flow_steps": 4,
    "width": 32,
    "depth": 2,
    "grad_clip": 1.0,
    "best_of_n": 1,
}


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Take SIGINT as from a terminal, also where the tests were started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def unforeseen() -> Iterator[Callable[[Exception], str]]:
    """Let unforeseen exceptions reach the test, instead of one line; the product's own answer."""
    answer = arguments.unforeseen

    def pass_on(error: Exception) -> NoReturn:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arguments, "unforeseen", pass_on)
        yield answer


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run a server in a thread."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """Let the system refuse files of more than so many bytes, as a full disk refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real cube-single dataset of a few short episodes."""
    folder = tmp_path_factory.mktemp("dataset")
    generate("cube-single", "play", str(folder), episodes=3, workers=1, episode_steps=30)
    return folder


@pytest.fixture
def build() -> Callable[..., Method]:
    """Return a builder of small methods: ``build(QAM, tau=1.0, width=16, horizon=1)``."""

    def builder(method: type[Method], **changes: Any) -> Method:
        torch.manual_seed(0)
        spaces = SPACES._asdict()
        spaces = {name: changes.pop(name, size) for name, size in spaces.items()}
        return method(Spaces(**spaces), **{**SMALL, **changes})

    return builder


@pytest.fixture
def batch() -> Batch:
    """Return 16 random chunks that fit the small methods, some cut short, some terminal."""
    g = torch.Generator().manual_seed(1)
    size, dim = 16, SPACES.chunk_dim
    return Batch(
        observations=torch.randn(size, SPACES.obs_dim, generator=g),
        actions=torch.rand(size, dim, generator=g) * 1.8 - 0.9,
        rewards=-torch.rand(size, generator=g),
        next_observations=torch.randn(size, SPACES.obs_dim, generator=g),
        masks=(torch.rand(size, generator=g) > 0.2).float(),
        valid=(torch.rand(size, generator=g) > 0.2).float(),
    )


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run traced graphs without the compiler, which takes twenty seconds; return the graphs."""
    import torch._inductor  # not at the top: it takes seconds

    graphs: list[Any] = []

    def keep(graph: Callable[..., Any], *args: object, **kwargs: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch._inductor, "standalone_compile", keep)
    return graphs


@pytest.fixture
def no_compiler() -> Iterator[None]:
    """Let this machine have no C++ compiler."""
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        yield
    cpp_builder.cpp_compiler_search.cache_clear()
