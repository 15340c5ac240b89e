from __future__ import annotations

import math
from functools import partial

import numpy as np

import fusedmix as fm
from families import Record
from fusedmix.methods import Families, Method


def oracle(method, columns, lam, dy, dx, size):
    s = 2 * (1 - lam) if method == Method.GMIX_PAPER else min(lam, 1 - lam)
    g = np.exp(-math.pi * (dy**2 + dx**2) / (s * math.prod(size)))
    return g if method == Method.GMIX_RELEASED and lam < 0.5 else 1 - g


RECORD = Record(
    methods={
        "GMix-released": partial(fm.GMix, variant="released"),
        "GMix-paper": partial(fm.GMix, variant="paper"),
    },
    formulas={
        "GMix released": (fm.GMix, Method.GMIX_RELEASED, {}),
        "GMix paper": (partial(fm.GMix, variant="paper"), Method.GMIX_PAPER, {}),
    },
    oracle=oracle,
    words={Families.GAUSSIANS: 5},  # the kind, the centre and the rate
    exponentials=True,
    exact=False,
)
