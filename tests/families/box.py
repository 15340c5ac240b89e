from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np

import fusedmix as fm
from families import Record
from fusedmix.methods import Families, Method


def oracle(method, columns, lam, dy, dx, size):
    ratio = columns.get("ratio", 1.0)
    fraction = math.sqrt(1 - lam) * math.sqrt(ratio)
    half_h, half_w = (int(side * fraction) // 2 for side in size)
    inside = (dy >= -half_h) & (dy < half_h) & (dx >= -half_w) & (dx < half_w)
    if method == Method.CUTMIX:
        outside = np.ones(len(inside))
    elif method == Method.HMIX_PAPER:
        outside = np.full(len(inside), lam / (1 - (1 - lam) * ratio))
    else:
        outside = lam / (1 - inside.mean((1, 2)))
    return np.where(inside, 0.0, outside[:, None, None])


def hmix(ratio, variant):
    method = Method.HMIX_RELEASED if variant == "released" else Method.HMIX_PAPER
    return partial(fm.HMix, ratio=ratio, variant=variant), method, {"ratio": ratio}


RECORD = Record(
    methods={
        "CutMix": fm.CutMix,
        "HMix-released": partial(fm.HMix, variant="released", ratio=0.5),
        "HMix-paper": partial(fm.HMix, variant="paper", ratio=0.5),
        "CutMix-inside": partial(fm.CutMix, placement="inside"),
        "HMix-inside": partial(fm.HMix, placement="inside"),
        "CutMix-minmax": partial(fm.CutMix, minmax=(0.2, 0.8)),
        "CutMix-aspect": partial(fm.CutMix, aspect=(0.3, 3.3), placement="inside"),
        "HMix-beta": partial(fm.HMix, ratio_alpha=2.0),
    },
    formulas={
        "CutMix": (fm.CutMix, Method.CUTMIX, {}),
        "HMix released .25": hmix(0.25, "released"),
        "HMix released .5": hmix(0.5, "released"),
        "HMix released .75": hmix(0.75, "released"),
        "HMix released 1": hmix(1.0, "released"),
        "HMix paper .5": hmix(0.5, "paper"),
    },
    oracle=oracle,
    degenerate=tuple(
        (method, {"ratio": ratio})
        for method, ratio in itertools.product((Method.HMIX_RELEASED, Method.HMIX_PAPER), (0.0, 1e-300, 1.0))
    ),
    words={Families.CUTS: 9, Families.BOXES: 9},
    sampled=lambda dims: fm.HMix(),
)
