"""A grid fits images of some dims only, and so is in no sweep. tests/test_gridmix.py asks the same of it."""

from __future__ import annotations

import fusedmix as fm
from families import Record
from fusedmix.methods import Families

RECORD = Record(
    methods={},
    words={Families.CELLS: 12, Families.LARGE_CELLS: 8},
    sampled=lambda dims: fm.GridMix(cells=(4,) * dims),
)
