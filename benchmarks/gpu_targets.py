"""What the CUDA backend promises, from the rows of gpu_mix for one shape and dtype."""

from __future__ import annotations

from benchmarks.common import Check, Timing

BLEND = 1.10  # times the copy of as many bytes
BOX, BOX_EXTRA = 1.25, 3.0  # times the copy of the box's bytes, and microseconds
TORCHVISION = {("MixUp", True): 4.0, ("MixUp", False): 4.0, ("CutMix", True): 5.0, ("CutMix", False): 2.0}  # in place?
COMPILED_OUT, COMPILED_IN = 1.05, 1.8
SMALL_STEP = 8.0  # microseconds: CIFAR-sized images and 100 classes


def targets(rows: list[Timing], large: bool) -> list[Check]:
    """The checks of one shape and dtype: of ImageNet's size, or of CIFAR's."""
    ours = [row for row in rows if row.provider == "fusedmix"]
    return _large(rows, ours) if large else _small(ours)


def _name(row: Timing) -> str:
    return f"{row.backend}: {row.method} {row.pairing}, per {row.per}, {row.dtype} {row.shape}"


def _large(rows: list[Timing], ours: list[Timing]) -> list[Check]:
    checks = []
    for row in ours:
        if row.call == "mix_" and row.method != "CutMix":
            checks.append(Check(f"{_name(row)}, in place", row.copy_ratio, BLEND, "x copy"))
        if row.call == "mix_" and row.method == "CutMix":
            limit = BOX * row.median_us / row.copy_ratio + BOX_EXTRA
            checks.append(Check(f"{_name(row)}, in place, {row.share:.0%} of the batch", row.median_us, limit, "us"))
        for peer in rows:
            alike = (peer.method, peer.per) == (row.method, row.per)
            if peer.provider == "torchvision" and row.call == "module" and alike:
                what = f"{_name(row)}, {'in' if row.inplace else 'out of'} place, faster than torchvision"
                limit = TORCHVISION[row.method, row.inplace]
                checks.append(Check(what, peer.median_us / row.median_us, limit, "x", at_least=True))
            same_call = (peer.call, peer.pairing) == (row.call, row.pairing)
            if peer.provider == "torch.compile" and alike and same_call and row.inplace:
                what = f"{_name(row)}, in place, faster than torch.compile"
                checks.append(Check(what, peer.median_us / row.median_us, COMPILED_IN, "x", at_least=True))
            if peer.provider == "torch.compile" and alike and same_call and not row.inplace:
                what = f"{_name(row)}, out of place"
                checks.append(Check(what, row.median_us / peer.median_us, COMPILED_OUT, "x torch.compile"))
    return checks


def _small(ours: list[Timing]) -> list[Check]:
    """Images and targets: in one operator, or as the two calls that apply a plan per sample on the device."""
    return [
        Check(f"{_name(row)}, {row.call}", row.median_us, SMALL_STEP, "us of GPU time")
        for row in ours
        if row.call == "step" or (row.call == "mix_ + mix_labels" and row.per == "sample")
    ]
