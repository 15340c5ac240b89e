"""The loss of mixed label maps on a CPU, forward and backward, against PyTorch's on dense targets built at every step.

Once PyTorch builds them too, as without this package: one-hot maps, moved to the channels, as floats, mixed by the
plan's mask. And once `mix_masks` of this package does.

    python -m benchmarks.cpu_pixel_loss [--threads 2] [--out benchmarks/results] [--quick]

4 images of 256x256 pixels with 21 classes (Pascal VOC), and 2 of 128x128 with 150 (ADE20k), mixed by HMix. Everything
is measured once a round, in an order drawn anew, after all have been compared. Prints a Markdown table and writes
cpu-pixel-loss.csv, cpu-pixel-loss-targets.csv and cpu-pixel-loss-environment.json. Exit status 1: a target is missed.
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

SHAPES = ((4, 21, 256, 256), (2, 150, 128, 128))
FASTER = 3.0  # times PyTorch that builds the targets, float32, of the first shape

Loss = Callable[[Tensor, Tensor, fm.MixPlan], Tensor]


def dense(z: Tensor, maps: Tensor, plan: fm.MixPlan) -> Tensor:
    """By torch.lerp, which is faster than a sum of two products."""
    mask, targets = plan.mask().unsqueeze(1).to(z.dtype), F.one_hot(maps, z.shape[1]).movedim(-1, 1).to(z.dtype)
    return F.cross_entropy(z, torch.lerp(targets[plan.partner], targets, mask))


def by_mix_masks(z: Tensor, maps: Tensor, plan: fm.MixPlan) -> Tensor:
    return F.cross_entropy(z, fm.mix_masks(maps, plan, num_classes=z.shape[1]).to(z.dtype))


LOSSES: dict[str, Loss] = {
    "fusedmix": fm.mix_pixel_cross_entropy,
    "torch": dense,
    "torch on targets of mix_masks": by_mix_masks,
}


def step(loss: Loss, z: Tensor, maps: Tensor, plan: fm.MixPlan) -> Tensor:
    """Forward and backward: the gradient of the logits."""
    return torch.autograd.grad(loss(z, maps, plan), z)[0]


def measure(shape: tuple[int, ...], dtype: torch.dtype, rounds: int) -> list[Timing]:
    """Ours first. Raises if their gradients differ."""
    z = torch.randn(shape).to(dtype).requires_grad_()
    maps = torch.randint(shape[1], (shape[0], *shape[2:]))
    plan = fm.HMix(ratio=0.5).sample(shape[0], shape[2:], seed=1)
    ours, *theirs = (step(loss, z, maps, plan) for loss in LOSSES.values())
    # PyTorch rounds dense targets, and what it computes of them, to the dtype of the logits.
    tolerance = 8 * torch.finfo(dtype).eps
    for slope in theirs:
        torch.testing.assert_close(ours, slope, rtol=tolerance, atol=tolerance)
    rows: list[Timing] = []
    calls: dict[int, Any] = {}
    for provider, loss in LOSSES.items():
        row = Timing("wall", provider, "mix_pixel_cross_entropy", method="HMix", dtype=dtype_name(dtype))
        row.backend = choose("cpu") if provider == "fusedmix" else ""
        row.shape, row.bytes = "x".join(map(str, shape)), 3 * z.nbytes  # read twice, a gradient written
        calls[len(rows)] = wall(partial(step, loss, z, maps, plan))
        rows.append(row)
    interleave(calls, 2)
    times = interleave(calls, rounds)
    for index, row in enumerate(rows):
        row.record(times[index])
    return rows


def targets(rows: list[Timing]) -> list[Check]:
    """How many times as fast as PyTorch."""
    ours, theirs = rows[:2]
    what = f"{ours.call}, {ours.dtype} {ours.shape}, faster than PyTorch on dense targets"
    return [Check(what, theirs.median_us / ours.median_us, FASTER, "x", at_least=True)]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="of torch")
    arguments.add_argument("--rounds", type=int, default=25)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    shapes, rounds = (((2, 5, 6, 7),), 3) if given.quick else (SHAPES, given.rounds)
    rows = [
        row for shape in shapes for dtype in (torch.float32, torch.bfloat16) for row in measure(shape, dtype, rounds)
    ]
    header = ("by", "dtype", "shape", "ms", "p20", "p80")
    table = [
        (r.provider, r.dtype, r.shape, *(f"{t / 1e3:.2f}" for t in (r.median_us, r.p20_us, r.p80_us))) for r in rows
    ]
    print(markdown(header, table))
    return keep(given, "pixel-loss", rows, targets(rows))


if __name__ == "__main__":
    sys.exit(main())
