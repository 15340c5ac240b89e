"""What the masks are is asked in tests/test_fmix.py."""

from __future__ import annotations

from functools import partial

import fusedmix as fm
from families import Record

RECORD = Record(
    methods={
        "FMix-released": partial(fm.FMix, variant="released"),
        "FMix-paper": partial(fm.FMix, variant="paper"),
        "FMix-soft": partial(fm.FMix, max_soft=0.3),
    },
    stored=True,
    sampled=lambda dims: fm.FMix(reformulate=True),
)
