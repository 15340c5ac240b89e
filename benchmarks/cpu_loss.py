"""The label losses on a CPU, forward and backward, against PyTorch's on dense mixed targets built at every step.

    python -m benchmarks.cpu_loss [--threads 2] [--out benchmarks/results] [--quick]

256 samples and 21,841 classes (ImageNet-21k), and 1,000 classes. The losses are in float32, as autocast has PyTorch's
too. Everything is measured once a round, in an order drawn anew, after both have been compared. Prints a Markdown table
and writes cpu-loss.csv, cpu-loss-targets.csv and cpu-loss-environment.json. Exit status 1: a target is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fusedmix as fm
from benchmarks.common import parser
from benchmarks.cpu_results import keep
from fusedmix.backends import choose
from fusedmix.bench.results import Check, dtype_name, markdown
from fusedmix.bench.timing import Timing, interleave, wall

LARGE, MEDIUM = (256, 21841), (256, 1000)
FASTER = 2.0  # times PyTorch, float32 and ImageNet-21k

Loss = Callable[[Tensor, Tensor, fm.MixPlan], Tensor]


def dense_cross_entropy(z: Tensor, y: Tensor, plan: fm.MixPlan) -> Tensor:
    return F.cross_entropy(z.float(), fm.mix_labels(y, plan, num_classes=z.shape[1]))


def dense_binary_cross_entropy(z: Tensor, y: Tensor, plan: fm.MixPlan) -> Tensor:
    return F.binary_cross_entropy_with_logits(z.float(), fm.mix_labels(y, plan, num_classes=z.shape[1]))


LOSSES: dict[str, tuple[Loss, Loss]] = {
    "mix_cross_entropy": (fm.mix_cross_entropy, dense_cross_entropy),
    "mix_binary_cross_entropy": (fm.mix_binary_cross_entropy, dense_binary_cross_entropy),
}


def step(loss: Loss, z: Tensor, y: Tensor, plan: fm.MixPlan) -> Tensor:
    """Forward and backward: the gradient of the logits."""
    return torch.autograd.grad(loss(z, y, plan), z)[0]


def measure(shape: tuple[int, int], dtype: torch.dtype, rounds: int) -> list[Timing]:
    """Both losses, ours and PyTorch's. Raises if their gradients differ."""
    z = torch.randn(shape).to(dtype).requires_grad_()
    y = torch.randint(shape[1], shape[:1])
    plan = fm.CutMix(per="sample", pairing="random").sample(shape[0], (32, 32), seed=1)
    rows: list[Timing] = []
    calls: dict[int, Any] = {}
    for name, (ours, theirs) in LOSSES.items():
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(step(ours, z, y, plan), step(theirs, z, y, plan), rtol=tolerance, atol=1e-6)
        for provider, loss in (("fusedmix", ours), ("torch", theirs)):
            row = Timing("wall", provider, name, pairing="random", per="sample", dtype=dtype_name(dtype))
            row.backend = choose("cpu") if provider == "fusedmix" else ""
            row.shape, row.bytes = "x".join(map(str, shape)), 3 * z.nbytes  # read twice, a gradient written
            calls[len(rows)] = wall(partial(step, loss, z, y, plan))
            rows.append(row)
    interleave(calls, 2)
    times = interleave(calls, rounds)
    for index, row in enumerate(rows):
        row.record(times[index])
    return rows


def targets(rows: list[Timing]) -> list[Check]:
    """How many times as fast as PyTorch."""
    checks = []
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        if ours.dtype != "float32" or ours.shape == "x".join(map(str, MEDIUM)):
            continue  # for looking at
        what = f"{ours.call}, {ours.dtype} {ours.shape}, faster than PyTorch on dense targets"
        ratio = theirs.median_us / ours.median_us
        checks.append(Check(what, ratio, FASTER, "x", at_least=True))
    return checks


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="of torch")
    arguments.add_argument("--rounds", type=int, default=25)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    shapes, rounds = (((4, 50),), 3) if given.quick else ((LARGE, MEDIUM), given.rounds)
    rows = [
        row for shape in shapes for dtype in (torch.float32, torch.bfloat16) for row in measure(shape, dtype, rounds)
    ]
    header = ("loss, forward and backward", "by", "dtype", "shape", "ms", "p20", "p80")
    table = [
        (r.call, r.provider, r.dtype, r.shape, *(f"{t / 1e3:.2f}" for t in (r.median_us, r.p20_us, r.p80_us)))
        for r in rows
    ]
    print(markdown(header, table))
    return keep(given, "loss", rows, targets(rows))


if __name__ == "__main__":
    sys.exit(main())
