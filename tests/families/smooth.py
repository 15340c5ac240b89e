from __future__ import annotations

import math
from functools import partial

import numpy as np

import fusedmix as fm
from families import Record
from fusedmix.methods import Families, Method


def oracle(method, columns, lam, dy, dx, size):
    area, dy, dx = (1 - lam) * math.prod(size), np.abs(dy), np.abs(dx)
    s = min(math.sqrt(2 * math.pi) * columns["edge"] * max(size), math.sqrt(area))
    if method == Method.SMOOTHMIX_DISC:
        r = float(np.float32(np.roots([math.pi, math.pi * s, s**2 - area]).real.max()))
        e2 = np.maximum(np.hypot(dy, dx) - r, 0) ** 2
    else:
        r = float(np.float32((math.sqrt(area) - s) / 2))
        e2 = np.maximum(dy - r, 0) ** 2 + np.maximum(dx - r, 0) ** 2
    return 1 - np.exp(-math.pi * e2 / s**2)


square = partial(fm.SmoothMix, shape="square")
RECORD = Record(
    methods={"SmoothMix-disc": fm.SmoothMix, "SmoothMix-square": square},
    formulas={
        "SmoothMix disc": (fm.SmoothMix, Method.SMOOTHMIX_DISC, {"edge": 0.1}),
        "SmoothMix square": (square, Method.SMOOTHMIX_SQUARE, {"edge": 0.1}),
    },
    oracle=oracle,
    words={Families.SMOOTH: 6},  # the kind, the centre, the rate and the radius
    exponentials=True,
    exact=False,
)
