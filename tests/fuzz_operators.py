"""Arguments that don't belong together, against every operator: nothing outside of a tensor is touched.

    python tests/fuzz_operators.py --calls 100000 --backend cpp

Every tensor lies between guard bytes. A call either raises, and then has written nothing, or returns; and what one
backend refuses, the other one does. Under AddressSanitizer, as CONTRIBUTING.md has it, the guards are poisoned, so that
reading one ends the process too.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import random
import sys
from typing import Any

import torch
from torch import Tensor

import fusedmix as fm
from fusedmix import backends, erasing
from fusedmix.methods import Pairing, Per

GUARD = 128  # bytes on either side
CANARY = 0xA5
IMAGES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
LABELS = (torch.int64, torch.int32, torch.uint8, torch.int16, torch.uint16, torch.uint64)
METHODS = (fm.MixUp, fm.CutMix, fm.HMix, fm.GMix, fm.SamplePairing, fm.FMix)
# Small, or far too large: what lies between would only take the machine's memory.
INTEGERS = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 4, 5, 6, 9, 2**45, 2**62)
ENTRIES = (*INTEGERS, 2**31 - 1, 2**31)
NUMBERS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 1.0, 2.0, 1e38, -1e38)
SIZES = (
    (),
    (0,),
    (1,),
    (-1,),
    (2**31,),
    (7,),
    (3, 5),
    (4, 0),
    (2, 3, 4),
    (2, 2, 2, 2),
    (2**31 - 1, 2**31 - 1, 3),
    (2**62,),
)
# The mirrored checks differ only in how they refuse.
REFUSALS = (ValueError, RuntimeError, IndexError, TypeError, NotImplementedError, OverflowError, MemoryError)

_asan = ctypes.CDLL(None)
POISONS = hasattr(_asan, "__asan_poison_memory_region")


def poison(address: int, size: int, on: bool) -> None:
    if POISONS:
        function = _asan.__asan_poison_memory_region if on else _asan.__asan_unpoison_memory_region
        function(ctypes.c_void_p(address), ctypes.c_size_t(size))


class Guards:
    """Tensors between guard bytes."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, int, Tensor]] = []

    def copy(self, t: Tensor) -> Tensor:
        """A copy of the same strides."""
        span = 1 + sum(stride * (n - 1) for n, stride in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
        size = span * t.element_size()
        memory = torch.full((2 * GUARD + size,), CANARY, dtype=torch.uint8)
        inside = memory[GUARD : GUARD + size].view(t.dtype)
        inside.copy_(t.as_strided((span,), (1,)))
        inside = inside.as_strided(t.shape, t.stride())
        poison(memory.data_ptr(), GUARD, True)
        poison(memory.data_ptr() + GUARD + size, GUARD, True)
        self._kept.append((memory, size, t))
        return inside

    def check(self, written: Tensor | None) -> None:
        """Raises unless the guards are as they were, and the tensors but `written`."""
        for memory, size, before in self._kept:
            poison(memory.data_ptr(), memory.numel(), False)
            assert (memory[:GUARD] == CANARY).all(), "written before a tensor"
            assert (memory[GUARD + size :] == CANARY).all(), "written after a tensor"
            if written is None or before is not written:
                now = memory[GUARD : GUARD + size].view(before.dtype)
                now = now.as_strided(before.shape, before.stride(), GUARD // before.element_size())
                assert torch.equal(bits(now), bits(before)), "an argument was written"


def bits(t: Tensor) -> Tensor:
    """NaN equal themselves."""
    return t.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


class Case:
    """A right call of an operator, of a seed; `spoil` makes it a wrong one."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        r = self.random
        self.batch = r.choice((0, 1, 2, 3, 4, 5, 8))
        self.size = tuple(r.choice((1, 2, 3, 5, 8, 33)) for _ in range(r.choice((1, 2, 2, 3))))
        self.classes = r.choice((1, 2, 3, 10, 65))
        self.pairing = r.choice(("roll", "flip", "random"))
        self.per = r.choice(("batch", "pair", "sample") if self.pairing == "flip" else ("batch", "sample"))
        kinds = (self.mask, self.fourier, self.mix, self.mix_, self.mix_adjoint, self.mix_labels, self.sample)
        finishes = (self.draw_finish, self.finish, self.finish_mix)
        self.operator, arguments = r.choice(
            (*kinds, self.mix_batch, self.mix_batch_, self.cross_entropy, self.binary, *finishes)
        )()
        self.arguments: list[Any] = list(arguments)

    # ---- right arguments

    def module(self, *, fourier: bool = True) -> fm.MixTransform:
        method = self.random.choice(METHODS if fourier else METHODS[:-1])
        options = {"max_soft": 0.3} if method is fm.FMix and self.random.random() < 0.4 else {}
        return method(pairing=self.pairing, per=self.per, **options)

    def plan(self, **options: Any) -> fm.MixPlan:
        if not options and math.prod(self.size) > 128 and self.random.random() < 0.2:
            grid = fm.GridMix(cells=self.size, pairing=self.pairing, per=self.per)
            mix = (
                grid
                if self.random.random() < 0.5
                else fm.RandomMix([grid, fm.FMix()], pairing=self.pairing, per=self.per)
            )
            return mix.sample(self.batch, self.size, seed=self.random.randrange(1000))
        return self.module(**options).sample(self.batch, self.size, seed=self.random.randrange(1000))

    def images(self, dtype: torch.dtype) -> Tensor:
        shape = (self.batch, self.random.choice((1, 3)), *self.size)
        x = torch.rand(shape, dtype=torch.float64).mul(255 if dtype == torch.uint8 else 1).to(dtype)
        layout = self.random.choice(("contiguous", "channels last", "sliced", "reversed"))
        if layout == "channels last":
            return x.movedim(1, -1).contiguous().movedim(-1, 1)
        if layout == "sliced":
            return torch.cat((x, x), -1)[..., : shape[-1]]
        if layout == "reversed":
            return x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
        return x

    def _masks(self) -> tuple[Any, ...]:
        plan = self.plan()
        ndim = 0 if plan.constant and self.random.random() < 0.5 else len(self.size)
        return (plan.partner, plan.masks, int(plan.families), ndim, int(plan.pairing), int(plan.per), plan.pixels)

    def mix(self) -> tuple[str, tuple[Any, ...]]:
        return "mix", (self.images(self.random.choice(IMAGES)), *self._masks())

    def mix_(self) -> tuple[str, tuple[Any, ...]]:
        return "mix_", (self.images(self.random.choice(IMAGES)), *self._masks())

    def mix_adjoint(self) -> tuple[str, tuple[Any, ...]]:
        return "mix_adjoint", (self.images(self.random.choice(IMAGES[:4])), *self._masks())

    def mask(self) -> tuple[str, tuple[Any, ...]]:
        plan = self.plan()
        return "mask", (plan.masks, int(plan.families), self.size, int(plan.per), plan.pixels)

    def fourier(self) -> tuple[str, tuple[Any, ...]]:
        module = fm.FMix(per=self.per, pairing=self.pairing, max_soft=self.random.choice((0.0, 0.3)))
        plan = module.sample(self.batch, self.size, seed=3)
        seed = torch.tensor(self.random.randrange(100))
        per = int(plan.per)
        return "fourier", (module._spec, plan.masks, seed, self.size, per, per, module._soft)

    def labels(self) -> Tensor:
        if self.random.random() < 0.6:
            return torch.randint(self.classes, (self.batch,)).to(self.random.choice(LABELS))
        return torch.rand(self.batch, self.classes).to(self.random.choice((*IMAGES, torch.int64)))

    def mix_labels(self) -> tuple[str, tuple[Any, ...]]:
        plan = self.plan(fourier=False)
        return "mix_labels", (self.labels(), plan.partner, plan.weight, self.classes, self.random.choice((0.0, 0.1)))

    def request(self, *, drawn: bool, device: bool) -> tuple[Any, ...]:
        module = self.module(fourier=False)
        lam = self.random.choice((None, torch.tensor(0.3), torch.rand(self.batch)))
        request = (module._spec, self.batch, self.size, int(Pairing[self.pairing.upper()]), int(Per[self.per.upper()]))
        request = (*request, 1.0, lam, None)
        if not drawn:
            request = (*request, torch.tensor(self.random.randrange(100)), None, None)
        else:
            numbers, partner = torch.ops.fusedmix.draw_host(*request, 0, None)
            request = (*request, None, numbers, None if self.pairing != "random" else partner)
        return (*request, torch.device("cpu")) if device else request

    def sample(self) -> tuple[str, tuple[Any, ...]]:
        return "sample", self.request(drawn=self.random.random() < 0.5, device=True)

    def step(self) -> tuple[Any, ...]:
        x, request = (
            self.images(self.random.choice(IMAGES)),
            self.request(drawn=self.random.random() < 0.5, device=False),
        )
        return (x, self.labels(), *request, self.classes, 0.1)

    def mix_batch(self) -> tuple[str, tuple[Any, ...]]:
        return "mix_batch", self.step()

    def mix_batch_(self) -> tuple[str, tuple[Any, ...]]:
        return "mix_batch_", self.step()

    def loss(self, soft: bool) -> tuple[tuple[Any, ...], Tensor]:
        plan, dtype = self.plan(fourier=False), self.random.choice(IMAGES[:4])
        logits = torch.randn(self.batch, self.classes).to(dtype)
        logits = self.random.choice((logits, logits.t().contiguous().t(), torch.cat((logits, logits), 1)[:, ::2]))
        labels = torch.randint(self.classes, (self.batch,)) if not soft else self.labels()
        labels = labels.long() if labels.ndim == 1 else labels
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        weights = torch.rand(self.classes, dtype=compute) if self.random.random() < 0.5 else None
        return (logits, labels, plan.partner, plan.weight, int(plan.pairing), int(plan.per), weights), compute

    def gradient(self, compute: Any, reduction: int) -> Tensor:
        return torch.rand(self.batch if reduction == 0 else (), dtype=compute)

    def cross_entropy(self) -> tuple[str, tuple[Any, ...]]:
        arguments, compute = self.loss(False)
        reduction = self.random.randrange(3)
        if self.random.random() < 0.5:
            return "cross_entropy", (*arguments, 0.1, -100, reduction)
        _, statistics, scale = torch.ops.fusedmix_reference.cross_entropy(*arguments, 0.1, -100, reduction)
        grad = self.gradient(compute, reduction)
        return "cross_entropy_backward", (grad, *arguments, statistics, scale, 0.1, -100)

    def binary(self) -> tuple[str, tuple[Any, ...]]:
        arguments, compute = self.loss(True)
        reduction, threshold = self.random.randrange(4), self.random.choice((None, 0.2))
        arguments = (*arguments, self.random.choice((None, torch.rand(self.classes, dtype=compute))), 0.1, threshold)
        if self.random.random() < 0.5:
            return "binary_cross_entropy", (*arguments, reduction)
        return "binary_cross_entropy_backward", (self.gradient(compute, reduction), *arguments, reduction)

    def a_finish(self) -> fm.Finish:
        r = self.random
        value = r.choice((0.5, "random", "pixel"))
        return fm.Finish(
            None,
            r.choice((torch.float32, torch.float16, torch.bfloat16)),
            r.choice((None, torch.channels_last, torch.contiguous_format)),
            hflip=r.choice((0.0, 0.5)),
            erase=r.choice((None, fm.Erase(0.7, (0.02, 0.9), value=value, count=r.choice((1, (2, 5), 16))))),
            input_format=r.choice(("NCHW", "NHWC")),
        )

    def draw_finish(self) -> tuple[str, tuple[Any, ...]]:
        chances = erasing.chances(self.a_finish())
        seed, sides = torch.tensor(self.random.randrange(100)), self.random.choices((1, 2, 5, 33), k=2)
        numbers = torch.tensor(chances, dtype=torch.float64)
        return "draw_finish", (numbers, int(chances.most), seed, self.batch, *sides, torch.device("cpu"))

    def finish(self) -> tuple[str, tuple[Any, ...]]:
        self.size = tuple(self.random.choices((1, 2, 5, 8, 33), k=2))
        how, x = self.a_finish(), self.images(self.random.choice((*IMAGES[:3], torch.uint8, torch.uint8)))
        x = x.permute(0, 2, 3, 1) if how.input_format == "NHWC" else x
        draws = None
        if how.is_random and self.random.random() < 0.9:
            draws = erasing.draw(erasing.chances(how), torch.tensor(3), self.batch, self.size)
        return "finish", (x, *how.arguments(x, draws))

    def finish_mix(self) -> tuple[str, tuple[Any, ...]]:
        _, arguments = self.finish()
        return "finish_mix", (*arguments, *self._masks())

    def comparable(self) -> bool:
        """Whether all backends must do alike: not where there is nothing to mix, which PyTorch may have no shape for,
        not where some draw by themselves, and not where only the reference finishes."""
        if self.operator.startswith("finish") and any(
            (x.dtype if isinstance(x, Tensor) else x) == torch.float64 for x in (self.arguments[0], self.arguments[5])
        ):
            return False
        tensors = [t for t in self.arguments if isinstance(t, Tensor)]
        start = {"sample": 8, "mix_batch": 10, "mix_batch_": 10}.get(self.operator)  # of seed and drawn
        drawn = start is None or self.arguments[start : start + 2] != [None, None]
        return (
            drawn
            and all(t.numel() for t in tensors)
            and not any(0 in x for x in self.arguments if isinstance(x, tuple))
        )

    # ---- wrong ones

    def spoil(self) -> None:
        """Replaces some arguments."""
        for _ in range(self.random.choice((0, 1, 1, 1, 2, 3))):
            i = self.random.randrange(len(self.arguments))
            self.arguments[i] = self.spoilt(self.arguments[i])

    def spoilt(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self.spoilt_tensor(x)
        if isinstance(x, torch.dtype):
            return self.random.choice((*IMAGES, *LABELS, torch.bool, torch.complex64))
        if isinstance(x, (bool, torch.device)):
            return x
        if isinstance(x, int):
            return self.random.choice(INTEGERS)
        if isinstance(x, float):
            return self.random.choice(NUMBERS)
        if isinstance(x, tuple):
            return self.random.choice(SIZES)
        return self.spoilt_tensor(torch.rand(self.batch, 2))  # None

    def spoilt_tensor(self, t: Tensor) -> Any:
        r = self.random
        way = r.randrange(9)
        if way == 0:
            return t[: max(0, t.shape[0] - 1 - r.randrange(2))] if t.ndim else t.reshape(1)
        if way == 1:
            return torch.cat((t, t)) if t.ndim else t.expand(3)
        if way == 2:
            return t.to(r.choice((*IMAGES, *LABELS[:4], torch.bool)))
        if way == 3:
            return r.choice((t.unsqueeze(0), t.unsqueeze(-1), t.flatten(), t.reshape(-1)[:0], t.new_zeros(())))
        if way == 4 and t.ndim:  # the same, not contiguous
            return torch.stack((t, t), -1)[..., 0]
        if way == 5 and t.ndim:
            return t[torch.randint(max(1, t.shape[0]), (t.shape[0],))]
        if way == 6 and t.ndim == 2:
            return t[:, : max(0, t.shape[1] - 1)]
        if way == 7:
            return None
        t = t.clone()
        for _ in range(r.choice((1, 1, 2, t.numel()))):
            if t.numel():
                at = tuple(r.randrange(n) for n in t.shape)
                if t.is_floating_point():
                    t[at] = r.choice(NUMBERS)
                elif t.dtype in (torch.int64, torch.int32):
                    info = torch.iinfo(t.dtype)
                    t[at] = min(max(r.choice(ENTRIES), info.min), info.max)
        return t


def outcome(backend: str, case: Case) -> tuple[str, Any]:
    """("refused", the message) or ("returned", what came), everything checked that can be from outside."""
    guards = Guards()
    arguments = [guards.copy(t) if isinstance(t, Tensor) else t for t in case.arguments]
    function = getattr(getattr(torch.ops, f"fusedmix_{backend}"), case.operator)
    try:
        result = function(*arguments)
        refused = None
    except REFUSALS as error:
        refused = str(error)
    in_place = case.operator.endswith("_")
    guards.check(case.arguments[0] if in_place and refused is None else None)
    if refused is not None:
        assert "INTERNAL ASSERT" not in refused
        return "refused", refused
    return "returned", [arguments[0].clone(), result] if in_place else result


def flat(x: Any) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else [t for part in x or () for t in flat(part)]


def fuzz(calls: int, backend: str, against: str | None = None, first: int = 0) -> dict[str, int]:
    """How many calls were refused, and how many returned."""
    counts = {"refused": 0, "returned": 0}
    for seed in range(first, first + calls):
        case = Case(seed)
        case.spoil()
        try:
            how, what = outcome(backend, case)
            counts[how] += 1
            if against is None or not case.comparable():
                continue
            other, expected = outcome(against, case)
            assert other == how, f"{backend} {how}, {against} {other}: {what if how == 'refused' else expected}"
            if how == "returned":
                for a, b in zip(flat(what), flat(expected), strict=True):
                    assert a.shape == b.shape
                    assert a.dtype == b.dtype
        except AssertionError as error:
            shown = [(t.dtype, tuple(t.shape), t.tolist()) if isinstance(t, Tensor) else t for t in case.arguments]
            raise AssertionError(f"seed {seed}, {case.operator}: {error}\n{shown}"[:3000]) from error
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--backend", default="cpp", choices=backends.NAMES)
    parser.add_argument("--against", choices=backends.NAMES)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    backends.operators("cpu", given.backend)
    print(fuzz(given.calls, given.backend, given.against, given.first), "poisoned" if POISONS else "", file=sys.stdout)
