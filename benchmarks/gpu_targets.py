"""What the backends of a GPU promise, from the rows of gpu_mix: beside copies, torch.compile, each other."""

from __future__ import annotations

from fusedmix.bench.results import Check
from fusedmix.bench.timing import Timing

# Times the copy of as many bytes: of float32, of types of 16 bits, and of bytes.
IN_PLACE = {"flip": (1.03, 1.03, 1.25), "roll": (1.10, 1.15, 1.25), "random": (1.10, 1.15, 1.25)}
PER_SAMPLE = 1.03  # that much more
CURVED = (1.15, 1.40, 2.0)  # GMix, and HMix, whose masks have two values
OUT_OF_PLACE = {"roll": 1.03, "random": 1.08}
OUT_PER_SAMPLE = 1.10  # and of curved masks
ADJOINT = 1.10
BOX, BOX_EXTRA = 1.25, 3.0  # times the copy of the boxes' bytes, and microseconds: of one box
BOXES = (1.8, 2.1, 2.5)  # of one a sample
LARGER = {"1024x3x224x224": 1.25, "8192x3x32x32": 1.8}
TORCHVISION = {("MixUp", True): 4.0, ("MixUp", False): 4.0, ("CutMix", True): 5.0, ("CutMix", False): 2.0}  # in place?
COMPILED_OUT, COMPILED_IN = 1.03, 1.8
SMALL_STEP = (8.0, 6.5)  # microseconds: CIFAR-sized images and 100 classes, float32 and types of 16 bits
BESIDE_CUDA = 1.15  # triton: times the same call of cuda
FMIX = 2.5  # times MixUp in place of the same batch, the masks made anew
HOST = 40.0  # microseconds, triton: `mix_` and whole calls of modules on a tiny batch


def targets(rows: list[Timing], large: bool) -> list[Check]:
    """The checks of one shape and dtype: of ImageNet's size, or of CIFAR's."""
    ours = [row for row in rows if row.provider == "fusedmix"]
    return _large(rows, ours) if large else _small(ours)


def host_targets(rows: list[Timing]) -> list[Check]:
    """The checks of what calls cost the host."""
    return [
        Check(f"{row.backend}: {row.method}, {row.call}, time on the host", row.median_us, HOST, "us")
        for row in rows
        if row.backend == "triton" and (row.call == "mix_" or row.call.startswith("module"))
    ]


def rest_targets(rows: list[Timing]) -> list[Check]:
    """The checks of bytes, and of more samples than a block can have a wide column of."""
    ours = [row for row in rows if row.backend not in ("", "triton") and row.call == "mix_"]
    limits = [(row, IN_PLACE["random"][2] if row.dtype == "uint8" else LARGER.get(row.shape)) for row in ours]
    return [
        Check(f"{_name(row)}, in place", row.copy_ratio, limit, "x copy")
        for row, limit in limits
        if limit is not None and row.method in ("MixUp", "GMix")
    ]


def _of_type(row: Timing, limits: tuple[float, ...]) -> float:
    """The limit for the type of a row."""
    return limits[{"float32": 0, "uint8": 2}.get(row.dtype, 1) if len(limits) > 2 else int(row.dtype != "float32")]


def _name(row: Timing) -> str:
    return f"{row.backend}: {row.method} {row.pairing}, per {row.per}, {row.dtype} {row.shape}"


def _fmix(row: Timing, ours: list[Timing]) -> list[Check]:
    """Drawn, made, thresholded and blended in place, beside MixUp in place."""
    return [
        Check(f"{_name(row)}, masks and all, in place", row.median_us / mixup.median_us, FMIX, "x MixUp")
        for mixup in ours
        if row.call == "module"
        and (mixup.method, mixup.call, mixup.inplace) == ("MixUp", "mix_", True)
        and (mixup.backend, mixup.pairing, mixup.per) == (row.backend, row.pairing, row.per)
    ]


def _large(rows: list[Timing], ours: list[Timing]) -> list[Check]:
    checks = []
    for row in ours:
        if row.method.startswith("FMix"):
            checks += _fmix(row, ours)
            continue
        checks += _beside_cuda(row, ours) if row.backend == "triton" else _beside_copies(row, rows)
        for peer in rows:
            alike = (peer.method, peer.per) == (row.method, row.per)
            if peer.provider == "torchvision" and row.call == "module" and alike:
                what = f"{_name(row)}, {'in' if row.inplace else 'out of'} place, faster than torchvision"
                limit = TORCHVISION[row.method, row.inplace]
                checks.append(Check(what, peer.median_us / row.median_us, limit, "x", at_least=True))
    return checks


def _beside_cuda(row: Timing, ours: list[Timing]) -> list[Check]:
    """In place, the same call on the same tensors in the same run."""
    same = (row.call, row.method, row.pairing, row.per)
    return [
        Check(f"{_name(row)}, in place", row.median_us / twin.median_us, BESIDE_CUDA, "x cuda")
        for twin in ours
        if row.call == "mix_" and twin.backend == "cuda" and same == (twin.call, twin.method, twin.pairing, twin.per)
    ]


def _beside_copies(row: Timing, rows: list[Timing]) -> list[Check]:
    """Beside copies of as many bytes, and the same mathematics by torch.compile."""
    checks = []
    curved, each = row.method in ("HMix", "GMix"), row.per != "batch"
    if row.call == "mix_" and row.method != "CutMix":
        more = PER_SAMPLE if each and not curved else 1.0
        limit = more * _of_type(row, CURVED if curved else IN_PLACE[row.pairing])
        checks.append(Check(f"{_name(row)}, in place", row.copy_ratio, limit, "x copy"))
    if row.call == "mix_" and row.method == "CutMix":
        what = f"{_name(row)}, in place, {row.share:.0%} of the batch"
        limit = BOX * row.median_us / row.copy_ratio + BOX_EXTRA
        one = Check(what, row.median_us, limit, "us")
        checks.append(Check(what, row.copy_ratio, _of_type(row, BOXES), "x copy") if each else one)
    if row.call == "mix" and row.method != "CutMix":
        limit = OUT_PER_SAMPLE if curved or each else OUT_OF_PLACE[row.pairing]
        checks.append(Check(f"{_name(row)}, out of place", row.copy_ratio, limit, "x copy"))
    if row.call == "mix_adjoint":
        checks.append(Check(f"{_name(row)}, the adjoint", row.copy_ratio, ADJOINT, "x copy"))
    same = (row.call, row.method, row.pairing, row.per)
    for peer in rows:
        if peer.provider != "torch.compile" or same != (peer.call, peer.method, peer.pairing, peer.per):
            continue
        if row.inplace:
            what = f"{_name(row)}, in place, faster than torch.compile"
            checks.append(Check(what, peer.median_us / row.median_us, COMPILED_IN, "x", at_least=True))
        else:
            what = f"{_name(row)}, out of place, beside torch.compile"
            checks.append(Check(what, row.median_us / peer.median_us, COMPILED_OUT, "x torch.compile"))
    return checks


def _small(ours: list[Timing]) -> list[Check]:
    """Images and targets in one operator."""
    return [
        Check(f"{_name(row)}, {row.call}", row.median_us, _of_type(row, SMALL_STEP), "us of GPU time")
        for row in ours
        if row.backend != "triton" and row.call == "step"
    ]
