"""The value network V(s)."""

from torch import Tensor, nn

from qam_lightning.nets.ensemble import CriticEnsemble


class ValueNetwork(nn.Module):
    """V(s): a single critic that reads no action.

    Args:
        obs_dim: O.
        width: hidden width.
        depth: number of hidden layers.
    """

    def __init__(self, obs_dim: int, width: int, depth: int) -> None:
        """Build the network."""
        super().__init__()
        self.net = CriticEnsemble(obs_dim, width, depth, members=1)

    def forward(self, s: Tensor) -> Tensor:
        """Return V(s), (B,), at states (B, O)."""
        return self.net(s).squeeze(0)
