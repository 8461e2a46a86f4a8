"""Distances between two samples of one size; 0 for equal samples, and nearly so for equal laws."""

import math

import torch
from torch import Tensor

DIRECTIONS = 64


def wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """Return W1 between samples (n, ...) and (n, ...), column by column, shape (...).

    In one dimension the best transport keeps the order, so that W1 is the mean gap of the sorted.
    """
    return (a.sort(0).values - b.sort(0).values).abs().mean(0)


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """Return the mean of W1 over directions, for samples (n, 1) or (n, 2); W1 itself in 1-D.

    In the plane the directions divide the half circle evenly, so the result is deterministic.
    """
    if a.shape[1] == 1:
        return wasserstein(a, b).item()
    angles = math.pi * torch.arange(DIRECTIONS) / DIRECTIONS
    directions = torch.stack([angles.cos(), angles.sin()])
    return wasserstein(a @ directions, b @ directions).mean().item()


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Return sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|) of samples (n, D) and (m, D), a length.

    Every pair counts, also a point with itself: between finite samples of one law it is not 0.
    """
    between, of_a, of_b = (torch.cdist(x, y).double().mean() for x, y in ((a, b), (a, a), (b, b)))
    return (2.0 * between - of_a - of_b).clamp(min=0.0).sqrt().item()
