"""Masks written a second time in NumPy, their moments, and plans of given λ and centres.

Figures named "published" are those of Park, Yun, Chun, "A Unified Analysis of Mixed Sample Data Augmentation" (NeurIPS
2022): their released code, enumerated over all centres at n = 64 and λ = .5, or run for 10⁶ (CutMix) and 10⁵ (GMix)
draws of λ.
"""

from __future__ import annotations

import math

import numpy as np
import torch

import fusedmix as fm
from families import RECORDS, Record
from fusedmix.masks import generate
from fusedmix.masks.family import Draws
from fusedmix.methods import Families, Method
from fusedmix.spec import spec_row

FORMULAS = Families(sum(Families)) & ~(Families.STORED | Families.LEVELS)

# name: how to make the module, its formula, columns of its spec
METHODS = {name: formula for record in RECORDS.values() for name, formula in record.formulas.items()}

OFFSETS = [(0, 0), (4, 0), (16, 0), (32, 0), (0, 4), (0, 16), (0, 32), (4, 4), (16, 16)]
# Published: E[mean M], then a(d) at 0, (4, 0), (16, 0), (32, 0), (4, 4) and (16, 16). It is the same along both axes.
MOMENTS = {
    "MixUp": (0.5, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25),
    "CutMix": (0.675857, 0.324143, 0.307797, 0.242413, 0.106750, 0.292275, 0.181290),
    "HMix released .25": (0.500000, 0.277555, 0.274251, 0.257569, 0.246778, 0.271615, 0.252625),
    "HMix released .5": (0.500000, 0.310365, 0.306024, 0.282442, 0.233972, 0.302259, 0.267949),
    "HMix released .75": (0.500000, 0.338943, 0.333449, 0.305333, 0.239360, 0.328474, 0.283866),
    "HMix released 1": (0.500000, 0.377282, 0.369518, 0.334408, 0.249235, 0.362195, 0.302350),
    "HMix paper .5": (0.539062, 0.281250, 0.275984, 0.248843, 0.196181, 0.271391, 0.232256),
    "GMix released": (0.699683, 0.176789, 0.178921, 0.157930, 0.092019, 0.181078, 0.141082),
    "GMix paper": (0.533107, 0.300317, 0.304980, 0.294306, 0.231624, 0.309716, 0.288415),
    "Stochastic": (0.587928, 0.287072, 0.278899, 0.246206, 0.178375, 0.271138, 0.215645),
}
MOMENTS = {name: (*row[:5], *row[2:5], *row[5:]) for name, row in MOMENTS.items()}  # The order is that of OFFSETS.
PUBLISHED = {name: METHODS[name] for name in METHODS if name in MOMENTS}


def oracle(
    name: str, lam: float, cy: np.ndarray, cx: np.ndarray, size: tuple[int, int], *own: np.ndarray
) -> np.ndarray:
    """(n, H, W) float64 masks around n centres, from the definitions; of numbers (n,) that its family draws itself."""
    _, method, columns = METHODS[name]
    dy, dx = np.arange(size[0]) - cy[:, None], np.arange(size[1]) - cx[:, None]
    return record_of(name).oracle(method, columns, lam, dy[:, :, None], dx[:, None, :], size, *own)


def record_of(name: str) -> Record:
    """The family's."""
    return next(record for record in RECORDS.values() if name in record.formulas)


def all_centres(size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(axis.ravel() for axis in np.indices(size))


def plan_at(name: str, lam: float | torch.Tensor, centre: torch.Tensor, size: tuple[int, ...]) -> fm.MixPlan:
    """The plan of given λ (or one for all) and centres (n, len(size))."""
    _, method, columns = METHODS[name]
    return formula_at(method, columns, lam, centre, size)


def formula_at(
    method: Method, columns: dict[str, float], lam: float | torch.Tensor, centre: torch.Tensor, size: tuple[int, ...]
) -> fm.MixPlan:
    n = centre.shape[0]
    lam = torch.as_tensor(lam, dtype=torch.float32).expand(n)
    full = torch.full((n,), float(method), dtype=torch.float64)
    row = spec_row(method, **columns)
    masks = generate(frozenset({method}), full, row.expand(n, -1), lam, draws_at(lam, centre), size)
    return fm.MixPlan(torch.arange(n), lam, masks.weight, masks.records, size, FORMULAS)


def draws_at(lam: torch.Tensor, centre: torch.Tensor) -> Draws:
    """What was drawn for given λ and centres."""
    zyx = torch.nn.functional.pad(centre, (3 - centre.shape[1], 0))
    zero = torch.zeros(len(lam)).long()
    return Draws(zero, zero == 0, lam, zyx, zero != 0, zyx * 0, zyx * 0, zero, lam, zero, torch.arange(len(lam)))


def float32(x: float) -> float:
    return float(np.float32(x))


def moments(masks: np.ndarray, offsets: list[tuple[int, int]]) -> np.ndarray:
    """(n, 1 + offsets): the mean of each mask, and its average of (1-M_i)(1-M_{i+d}) over i with i+d inside."""
    q = 1 - masks
    _, height, width = q.shape
    columns = [masks.mean((1, 2), dtype=np.float64)]
    for dy, dx in offsets:
        product = q[:, : height - dy, : width - dx] * q[:, dy:, dx:]
        columns.append(product.mean((1, 2), dtype=np.float64))
    return np.stack(columns, 1)


def sampled_moments(mix, n: int, size: tuple[int, int], lam: float, offsets: list[tuple[int, int]]) -> np.ndarray:
    """Moments of n masks, a thousand a seed; their last column is the label weight."""
    rows = []
    for seed in range(n // 1000):
        plan = mix.sample(1000, size, lam=lam, seed=seed)
        rows.append(np.column_stack((moments(plan.mask().numpy(), offsets), plan.weight)))
    return np.concatenate(rows)


def assert_means(drawn: np.ndarray, expected: np.ndarray, deviation: np.ndarray | None = None) -> None:
    """Column means within four standard errors (of the exact deviations, where known), and 1e-6 for float32."""
    deviation = drawn.std(0) if deviation is None else deviation
    error = np.abs(drawn.mean(0) - expected)
    assert (error <= 4 * deviation / math.sqrt(len(drawn)) + 1e-6).all(), error / (deviation / math.sqrt(len(drawn)))


SHORT_OFFSETS = [(0, 0), (3, 0), (0, 5), (7, 7), (12, 0), (0, 16)]
