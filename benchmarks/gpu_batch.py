"""What gpu_mix measures on one shape and dtype: fusedmix's calls by every backend on the same tensors, copies, peers.

Each is checked before it is timed, and what fails is noted and left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fusedmix as fm
from benchmarks import peers
from benchmarks.common import noting
from fusedmix import backends as fused_backends
from fusedmix.bench import copies
from fusedmix.bench.device import Clones, Replays, finish, kernels
from fusedmix.bench.results import dtype_name
from fusedmix.bench.timing import Timing, interleave
from fusedmix.ops import draw_on_host

METHODS: dict[str, Callable[..., fm.MixTransform]] = {
    "MixUp": fm.MixUp,
    "HMix": fm.HMix,
    "GMix": fm.GMix,
    "CutMix": fm.CutMix,
}
PERS = ("batch", "sample")
DRY_SECONDS = 0.002  # of a measurement on a CPU, which only a dry run makes
PAIRINGS = ("roll", "flip", "random")
ADJOINTS = (("MixUp", "roll", "batch"), ("CutMix", "random", "sample"), ("GMix", "random", "sample"))
FMIXES: dict[str, dict[str, Any]] = {"FMix": {}, "FMix released": {"variant": "released"}}


@dataclass
class Entry:
    """A row, and what it times: a call on clone k."""

    row: Timing
    call: Callable[[int], Any]
    check: Callable[[], None] | None = None  # raises if the call does something else than it should


class Batch:
    """Everything that is measured on one shape and dtype.

    Attributes:
        failed: what could not be measured, and why.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        classes: int,
        backends: Sequence[str],
        channels_last: bool = False,
    ) -> None:
        self.device, self.dtype, self.shape, self.classes, self.backends = device, dtype, shape, classes, backends
        self.failed: list[str] = []
        self.layout = "channels_last" if channels_last else "contiguous"
        self.clones = Clones(shape, dtype, device, channels_last)
        self.y = torch.randint(classes, (shape[0],), device=device)

    def row(self, call: str, method: str, **more: Any) -> Timing:
        shape = "x".join(map(str, self.shape))
        row = Timing("device", "fusedmix", call, method, dtype=dtype_name(self.dtype), shape=shape, layout=self.layout)
        return replace(row, **more)

    def plan(self, method: str, pairing: str, per: str) -> fm.MixPlan:
        """On the device, by none of the backends that are measured. Half of the batch per batch, and for boxes; else as
        drawn."""
        lam = 0.5 if per == "batch" or method == "CutMix" else None
        module = METHODS[method](pairing=pairing, per=per, backend="reference")
        return module.sample(self.shape[0], self.shape[2:], lam=lam, seed=1, device=self.device)

    def each(self, call: Callable[..., Any], *more: Any, **options: Any) -> Callable[[int], Any]:
        """A call on clone k."""
        return lambda k: call(self.clones.x[k], *more, **options)

    def same(self, mixed: Tensor, expected: Tensor) -> None:
        """Raises unless two results differ by a few roundings at most (peers round both products and their sum),
        if they are bytes by one, where masks differ by rounding."""
        allowed = 1.0
        if self.dtype.is_floating_point:
            allowed = 4 * torch.finfo(self.dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(mixed, expected, rtol=0.0, atol=allowed)

    def same_targets(self, targets: Tensor, expected: Tensor) -> None:
        """Raises unless two targets, of at most 1, differ by a few roundings at most."""
        torch.testing.assert_close(targets, expected, rtol=0.0, atol=4 * torch.finfo(torch.float32).eps)

    def plans(
        self, labels: bool = False, methods: Sequence[str] = tuple(METHODS), pairings: Sequence[str] = PAIRINGS
    ) -> Iterator[Entry]:
        """A plan on the device, applied in place; with `labels` to these too."""

        def mix_both(x: Tensor, plan: fm.MixPlan, backend: str) -> Tensor:
            fm.mix_(x, plan, backend=backend)
            return fm.mix_labels(self.y, plan, num_classes=self.classes, backend=backend)

        call, function = ("mix_ + mix_labels", mix_both) if labels else ("mix_", fm.mix_)
        for method in methods:
            for pairing in pairings:
                for per in PERS:
                    plan = self.plan(method, pairing, per)
                    share = 1.0 - float(plan.weight.mean()) if method == "CutMix" else 1.0
                    more = {"pairing": pairing, "per": per, "inplace": True, "share": share}
                    for backend in self.backends:
                        row = self.row(call, method, backend=backend, **more)
                        check = partial(self.as_reference, plan, backend, labels=labels)
                        yield Entry(row, self.each(function, plan, backend=backend), check)

    def as_reference(self, plan: fm.MixPlan, backend: str, inplace: bool = True, labels: bool = False) -> None:
        """Raises unless a backend applies a plan as the reference does."""
        x = self.clones.x[0]
        mixed = fm.mix_(x.clone(), plan, backend=backend) if inplace else fm.mix(x, plan, backend=backend)
        self.same(mixed, fm.mix(x, plan, backend="reference"))
        if labels:
            targets = (fm.mix_labels(self.y, plan, num_classes=self.classes, backend=b) for b in (backend, "reference"))
            self.same_targets(*targets)

    def fmix(self) -> Iterator[Entry]:
        """FMix's masks alone, masks applied, and both: noise, grey images, bits and the blend in place, drawn anew by
        every replay. MixUp in place of the same batch, for ratios, is among `plans`."""
        for name, options in FMIXES.items():
            for per in PERS:
                for backend in self.backends:
                    entries: list[Entry] = []
                    with noting(self.failed, f"{backend}: {name} per {per}, {dtype_name(self.dtype)}"):
                        entries = self.fmix_by(backend, name, per, options)
                    yield from entries

    def fmix_by(self, backend: str, name: str, per: str, options: dict[str, Any]) -> list[Entry]:
        size = self.shape[2:]
        mix = fm.FMix(num_classes=self.classes, per=per, inplace=True, sampling="device", backend=backend, **options)
        plan = mix.sample(self.shape[0], size, lam=0.5, seed=1, device=self.device)
        operators = fused_backends.operators(self.device.type, backend)
        spec = mix._request(self.shape[0], size, None, None)[0]
        seed = torch.ones((), dtype=torch.int64, device=self.device)
        each = int(plan.per)
        arguments = (spec, plan.masks, seed, size, each, each, False)
        more = {"backend": backend, "pairing": "roll", "per": per, "inplace": True}
        applied = self.row("mix_", name, share=1.0 - float(plan.weight.mean()), **more)
        return [
            Entry(
                self.row("fourier", name, **more),
                partial(_ignoring_clones, operators.fourier, arguments),
                partial(self.as_many_ones, plan),
            ),
            Entry(applied, self.each(fm.mix_, plan, backend=backend), partial(self.as_reference, plan, backend)),
            Entry(self.row("module", name, **more), self.each(mix, self.y), partial(self.as_its_plan, mix)),
        ]

    def as_its_plan(self, mix: fm.MixTransform) -> None:
        """Raises unless a module makes of a batch what the reference makes of it by the plan that the module samples
        from the same seed."""
        x = self.clones.x[0]
        torch.manual_seed(0)
        images, targets = mix(x.clone(), self.y)
        torch.manual_seed(0)
        plan = mix.sample(self.shape[0], self.shape[2:], device=self.device)
        self.same(images, fm.mix(x, plan, backend="reference"))
        expected = fm.mix_labels(self.y, plan, num_classes=self.classes, backend="reference")
        self.same_targets(targets, expected)

    def as_many_ones(self, plan: fm.MixPlan) -> None:
        """Raises unless every mask has as many ones as its plan says."""
        ones = plan.mask().flatten(1).sum(1, dtype=torch.float64).cpu()
        torch.testing.assert_close(ones, plan.geometry[:, 0].double().cpu(), rtol=0.0, atol=0.0)

    def out_of_place(
        self, methods: Sequence[str] = ("MixUp", "CutMix", "GMix"), pairings: Sequence[str] = ("roll", "random")
    ) -> Iterator[Entry]:
        for method in methods:
            for pairing in pairings:
                for per in PERS:
                    plan = self.plan(method, pairing, per)
                    for backend in self.backends:
                        row = self.row("mix", method, backend=backend, pairing=pairing, per=per)
                        check = partial(self.as_reference, plan, backend, inplace=False)
                        yield Entry(row, self.each(fm.mix, plan, backend=backend), check)

    def adjoints(self) -> Iterator[Entry]:
        """What the backward pass calls, on gradients of the shape and layout of the images."""
        for method, pairing, per in ADJOINTS:
            plan = self.plan(method, pairing, per)
            masks = (plan.partner, plan.masks, int(plan.families), len(plan.size), int(plan.pairing))
            for backend in self.backends:
                operators = fused_backends.operators(self.device.type, backend)
                row = self.row("mix_adjoint", method, backend=backend, pairing=pairing, per=per)
                call = self.each(operators.mix_adjoint, *masks, int(plan.per))
                yield Entry(row, call, partial(self.as_derivative, plan, call))

    def as_derivative(self, plan: fm.MixPlan, call: Callable[[int], Tensor]) -> None:
        """Raises unless an adjoint gives the gradient that autograd gives through the reference."""
        grad = self.clones.x[0]
        x = torch.zeros_like(grad).requires_grad_()
        (expected,) = torch.autograd.grad(fm.mix(x, plan, backend="reference"), x, grad)
        self.same(call(0), expected)

    def steps(self) -> Iterator[Entry]:
        """Images and targets by the one operator that modules call, of numbers drawn before: without the sampler."""
        for method in METHODS:
            for pairing in ("roll", "flip"):
                module = METHODS[method](pairing=pairing)
                request = module._request(self.shape[0], self.shape[2:], None, None)
                source = draw_on_host(request, None, 1)
                for backend in self.backends:
                    operators = fused_backends.operators(self.device.type, backend)
                    row = self.row("step", method, backend=backend, pairing=pairing, per="batch", inplace=True)
                    given = (self.y, *request, *source, self.classes, 0.0)
                    check = partial(self.as_one_step, operators, given)
                    yield Entry(row, self.each(operators.mix_batch_, *given), check)

    def as_one_step(self, operators: Any, given: tuple[Any, ...]) -> None:
        """Raises unless a backend's step makes the images and targets of the reference's."""
        results = []
        for by in (operators, fused_backends.operators(self.device.type, "reference")):
            x = self.clones.x[0].clone()
            results.append((x, by.mix_batch_(x, *given)[0]))
        self.same(results[0][0], results[1][0])
        self.same_targets(results[0][1], results[1][1])

    def modules(self) -> Iterator[Entry]:
        """Whole calls, the sampler included: every replay draws anew."""
        for method in peers.TORCHVISION:
            for inplace in (True, False):
                for per in PERS:
                    options = {"per": per, "inplace": inplace, "sampling": "device"}
                    for backend in self.backends:
                        mix = METHODS[method](num_classes=self.classes, backend=backend, **options)
                        row = self.row("module", method, backend=backend, pairing="roll", per=per, inplace=inplace)
                        yield Entry(row, self.each(mix, self.y), partial(self.as_its_plan, mix))

    def torchvision(self) -> Iterator[Entry]:
        for method, module in peers.TORCHVISION.items():
            row = self.row("module", method, provider="torchvision", pairing="roll", per="batch")
            yield Entry(row, self.each(module(num_classes=self.classes), self.y), partial(self.as_torchvision, method))

    def as_torchvision(self, method: str) -> None:
        """Raises unless torchvision's module and ours, by the reference, make the same batch of the same seed."""
        results = []
        for module, options in ((METHODS[method], {"backend": "reference"}), (peers.TORCHVISION[method], {})):
            torch.manual_seed(0)
            results.append(module(num_classes=self.classes, **options)(self.clones.x[0], self.y))
        self.same(results[0][0], results[1][0])
        self.same_targets(results[0][1], results[1][1])

    def compiled(self) -> Iterator[Entry]:
        """torch.compile of the same mathematics: no labels, λ and boxes on the device."""
        functions = {
            ("MixUp", "batch"): (peers.mixup, peers.mixup_),
            ("CutMix", "batch"): (peers.cutmix, peers.cutmix_),
            ("MixUp", "sample"): (peers.mixup_each,),
            ("CutMix", "sample"): (peers.cutmix_each,),
        }
        for (method, per), of_method in functions.items():
            plan = self.plan(method, "roll", per)
            given = plan.lam.clone() if method == "MixUp" else plan.geometry[:, [1, 2, 4, 5]]
            given = given[0].clone() if per == "batch" else given
            for function in of_method:
                inplace = function.__name__.endswith("_")
                row = self.row("mix_" if inplace else "mix", method, provider="torch.compile", pairing="roll", per=per)
                row.inplace = inplace
                call = peers.compiled(function, self.device)
                yield Entry(row, self.each(call, given), partial(self.same_mathematics, call, given, plan))

    def same_mathematics(self, function: Callable[..., Tensor], given: Tensor, plan: fm.MixPlan) -> None:
        """Raises unless a peer, compiled, applies a plan as the reference does."""
        x = self.clones.x[0]
        self.same(function(x.clone(), given), fm.mix(x, plan, backend="reference"))

    def copies(self, shares: set[float]) -> Iterator[Entry]:
        total = self.clones.x[0].numel()
        for share in shares:
            n = max(16, int(share * total) // 16 * 16)
            out, x = ([_memory(t)[:n] for t in clones] for clones in (self.clones.out, self.clones.x))
            for name, copy in copies.copies(self.device).items():
                row = self.row("copy", name, provider="triton" if name == "triton" else "torch", share=share)
                yield Entry(row, partial(_copy, copy, out, x), partial(as_copied, name, copy, out[0], x[0]))

    def measure(self, entries: list[Entry], rounds: int, deadline: float = math.inf) -> list[Timing]:
        """The rows of what does as it should. What is not ready by the deadline (time.monotonic) is left out."""
        entries = [*self.copies({entry.row.share for entry in entries} | {1.0}), *entries]
        starts = {}
        for n, entry in enumerate(entries):
            row = entry.row
            if time.monotonic() > deadline:
                first, left = f"{row.backend or row.provider}: {row.call} {row.method}", len(entries) - n
                self.failed.append(f"{row.dtype} {row.shape}: no time was left for {left} rows, from {first} on")
                break
            with noting(
                self.failed, f"{row.backend or row.provider}: {row.call} {row.method}, {row.dtype} {row.shape}"
            ):
                if entry.check is not None:
                    entry.check()
                ours = row.provider == "fusedmix"
                replays = Replays(entry.call, self.clones, self.device, must_capture=ours, seconds=DRY_SECONDS)
                row.measure = replays.measure
                starts[n] = replays.start
        interleave(starts, 2, lambda: finish(self.device))
        times = interleave(starts, rounds, lambda: finish(self.device))
        rows = [entries[n].row for n in starts]
        for n, row in zip(starts, rows, strict=True):
            row.record(times[n])
        for row in rows:
            row.bytes = int(2 * row.share * self.clones.bytes)
            row.copy_ratio = row.median_us / ceiling(rows, row)
        if self.device.type == "cuda":  # when everything is timed: nothing is profiled before
            with noting(self.failed, f"the names of kernels, {dtype_name(self.dtype)}, {self.layout}"):
                launched = kernels([partial(entries[n].call, 0) for n in starts])
                for row, names in zip(rows, launched, strict=True):
                    row.kernels = " + ".join(names)
        return rows


def _ignoring_clones(call: Callable[..., Any], arguments: tuple[Any, ...], k: int) -> Any:
    return call(*arguments)


def _memory(x: Tensor) -> Tensor:
    """The elements of a batch in the order of its memory, contiguous or channels_last."""
    return (x if x.is_contiguous() else x.movedim(1, -1)).view(-1)


def _copy(copy: copies.Copy, out: list[Tensor], x: list[Tensor], k: int) -> None:
    copy(out[k], x[k])


def as_copied(name: str, copy: copies.Copy, out: Tensor, x: Tensor) -> None:
    """Raises unless a copy is one, or the negative that it says it is."""
    copy(out, x)
    torch.testing.assert_close(out, x.neg() if name == "neg" else x, rtol=0.0, atol=0.0)


def ceiling(rows: list[Timing], row: Timing) -> float:
    """Microseconds of the fastest copy of as many bytes."""
    return min((r.median_us for r in rows if r.call == "copy" and r.share == row.share), default=math.nan)
