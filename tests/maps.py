"""What is done to maps, by hand: the tests of importance maps and of the methods that take them share it."""

from __future__ import annotations

import numpy as np


def linear(x, size):
    """Two-dimensional linear interpolation between the centres of pixels, by hand."""
    for axis, side in enumerate(size):
        n = x.shape[axis]
        place = np.clip((np.arange(side) + 0.5) * n / side - 0.5, 0, n - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, n - 1)
        share = (place - low).reshape([-1 if a == axis else 1 for a in range(2)])
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return x


def weights_of(x, cells):
    """The mean of a two-dimensional map in each cell of a grid: pixel c of a side is in cell c·cells // side."""
    rows, columns = (np.arange(side) * count // side for side, count in zip(x.shape, cells, strict=True))
    return np.array([[x[rows == a][:, columns == b].mean() for b in range(cells[1])] for a in range(cells[0])])
