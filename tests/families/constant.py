from __future__ import annotations

import numpy as np

import fusedmix as fm
from families import Record
from fusedmix.methods import Families, Method


def oracle(method, columns, lam, dy, dx, size):
    return np.full(np.broadcast_shapes(dy.shape, dx.shape), lam)


RECORD = Record(
    methods={"MixUp": fm.MixUp, "SamplePairing": fm.SamplePairing},
    formulas={"MixUp": (fm.MixUp, Method.MIXUP, {})},
    oracle=oracle,
    degenerate=((Method.SAMPLE_PAIRING, {}),),
    words={Families.CONSTANTS: 2},  # the kind and λ
)
