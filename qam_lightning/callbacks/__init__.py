"""Callbacks: target networks, metrics, evaluation, checkpoints, progress, online collection."""
