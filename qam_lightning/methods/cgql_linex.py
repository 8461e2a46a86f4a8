"""CGQL-Linex: CGQL with a critic of noisy actions, learned by a Linex loss (Eq. 64, 70-72).

Citation
    The paper: Li, Levine, "Q-learning with adjoint matching", arXiv:2601.14234, 2026.
    Parsian, Kirmani, "Estimation under Linex loss function", Handbook of applied econometrics
    and statistical inference, 2002.
    Myers et al., "Offline goal-conditioned reinforcement learning with quasimetric
    representations", arXiv:2509.20478, 2025: linear beyond a bound.

Trained by what
    critic Q_φ(s, a, u)   at u = 1 TD with pessimistic EMA backup (Eq. 26), a' from the guided flow;
                          at other u, times ϱ, Linex loss of Q(s, a_u, u) against EMA-Q(s, a, 1),
                          least at (1/τ) log E exp(τ Q(s, a, 1)) over the a that a_u came from
    behaviour v_β         flow matching on dataset chunks (Eq. 17)

Acts with v_β + ϑ ((1 - u) τ ∇_a mean_K Q(s, a_u, u) + a_u) / u.
No gradient passes through the guidance. It changes the acting policy and the TD target.

Differences from the paper's text
    Eq. 70 prints its two cases swapped: the loss is exponential where Δ <= 5, linear beyond.
    v_β is the flow's EMA; the guiding Q is the online critic.
    The first step, at u = 0, is not guided: Eq. 72 is singular there.
    Each member learns from its own EMA. Chunks that run into the next trajectory carry no weight.
"""

from torch import Tensor

from qam_lightning.core.guidance import linex
from qam_lightning.methods.cgql_mse import CGQLMSE


class CGQLLinex(CGQLMSE):
    """CGQL-MSE with another loss: the critic learns the soft maximum at noisy actions.

    ``tau`` is the inverse temperature of the guidance and of the soft maximum.
    """

    def error(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the element-wise Linex error of Q(s, a_u, u) against Q(s, a, 1) (Eq. 64, 70)."""
        return linex(predicted, target, self.tau)
