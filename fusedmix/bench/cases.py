"""What `fusedmix bench` measures: every method, size and number of draws, then one other axis after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch  # not at import: the command line asks for the names below before it knows whether it needs PyTorch

METHODS = ("MixUp", "CutMix", "HMix", "GMix", "FMix")
PEERS = ("torchvision", "timm", "kornia", "PyTorch", "torch.compile", "numpy")  # in the order of tables
PERS = ("batch", "pair", "sample")
LAYOUTS = ("contiguous", "channels_last")
DTYPES = ("float32", "float16", "bfloat16", "uint8")
BATCHES = {32: 512, 224: 128, 384: 32}  # of the base cases


@dataclass(frozen=True)
class Case:
    """One batch and what is done with it."""

    method: str
    per: str = "batch"
    size: int = 224
    batch: int = 128
    dtype: str = "float32"
    layout: str = "contiguous"
    classes: int = 1000
    backward: bool = False  # the gradient of the images too

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W)."""
        return (self.batch, 3, self.size, self.size)

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def __str__(self) -> str:
        words = [self.method, f"per {self.per}", "x".join(map(str, self.shape)), self.dtype]
        words += [self.layout] if self.layout != "contiguous" else []
        words += [f"{self.classes} classes"] if self.classes != 1000 else []
        return ", ".join([*words, *(["forward and backward"] if self.backward else [])])


def quick_cases() -> list[Case]:
    """A few small batches, for a look of less than a minute."""
    found = [Case(method, per, 32, 128, classes=100) for method in METHODS for per in ("batch", "sample")]
    found += [Case(method, per, 224, 16) for method in ("MixUp", "CutMix", "FMix") for per in ("batch", "sample")]
    return [*found, Case("MixUp", "batch", 224, 16, "bfloat16"), Case("MixUp", "batch", 224, 16, backward=True)]


def swept_cases() -> list[Case]:
    """Every method, number of draws and size; then of some of them every other axis by itself."""
    found = [Case(m, per, size, batch) for size, batch in BATCHES.items() for m in METHODS for per in PERS]
    some = [Case(method, per) for method in ("MixUp", "CutMix", "GMix") for per in ("batch", "sample")]
    found += [replace(case, dtype=dtype) for dtype in DTYPES[1:] for case in some]
    found += [replace(case, layout="channels_last") for case in some]
    found += [replace(case, batch=batch) for batch in (16, 256) for case in some]
    small = [replace(case, size=32, batch=BATCHES[32]) for case in some[:4]]
    found += [replace(case, classes=classes) for classes in (10, 21841) for case in small]
    found += [replace(case, batch=batch) for batch in (64, 4096) for case in small]
    return found + [Case(method, per, backward=True) for method in METHODS for per in ("batch", "sample")]


def product_of(axes: dict[str, Sequence[Any]]) -> Iterator[Case]:
    """All combinations of the given values; axes that are not given stay at their default, the batch goes with the
    size."""
    names = [field.name for field in fields(Case) if field.name in axes]
    for values in itertools.product(*(axes[name] for name in names)):
        given = dict(zip(names, values, strict=True))
        given.setdefault("batch", BATCHES.get(given.get("size", 224), 128))
        if not (given.get("backward") and given.get("dtype") == "uint8"):
            yield Case(**given)
