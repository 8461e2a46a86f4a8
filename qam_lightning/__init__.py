"""Q-learning with Adjoint Matching: offline and offline-to-online RL with flow policies."""

__version__ = "0.1.0"
