"""PuzzleMix's masks on a CPU, against the authors' code: labels of blocks and their moves, not the mixing itself.

    python -m benchmarks.puzzle_peers FOLDER [--threads 2] [--out benchmarks/results] [--quick]

FOLDER is a checkout of github.com/snu-mllab/PuzzleMix, which needs gco-wrapper. 64x3x224x224, maps of the same size.
First the two are compared: no labels of theirs may cost less than ours, and where labels are the same so must the mixed
images be. Prints a Markdown table and writes cpu-puzzle.csv. Exit status 1: they are not, or ours are not 10 times as
fast.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import fusedmix as fm
from benchmarks.common import RESULTS, parser
from fusedmix.backends import choose
from fusedmix.backends.borders import border_costs
from fusedmix.bench.environment import environment
from fusedmix.bench.results import Check, markdown, targets_table, write_csv
from fusedmix.bench.timing import Timing, interleave, wall
from fusedmix.blocks import Weights, energies, shares

LAM = 0.6
OPTIONS = {"beta": 1.2, "gamma": 0.5, "eta": 0.2}
TARGET = 10.0


def authors(folder: Path) -> ModuleType:
    """Their functions, as they are."""
    spec = importlib.util.spec_from_file_location("authors_puzzle_mix", folder / "mixup.py")
    if spec is None or spec.loader is None or not (folder / "mixup.py").is_file():
        raise SystemExit(f"{folder} is no checkout of github.com/snu-mllab/PuzzleMix: there is no mixup.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def batch(n: int, side: int) -> tuple[Tensor, Tensor]:
    """Images and maps with structure of several sizes."""
    torch.manual_seed(0)
    images = (
        F.interpolate(torch.rand(n, 3, 14, 14), size=(side, side), mode="bilinear") + torch.rand(n, 3, side, side) / 20
    )
    peaks = F.interpolate(torch.rand(n, 1, 7, 7) ** 3, size=(side, side), mode="bilinear")[:, 0]
    return images, peaks * torch.rand(n, side, side)


class Theirs:
    """A call of theirs for a grid, with the partners of pairing="roll"."""

    def __init__(self, code: ModuleType, images: Tensor, maps: Tensor, blocks: int) -> None:
        self.code, self.images, self.maps = code, images, maps
        # What they compare along borders must divide a block.
        near = next(n for n in (4, 3, 2, 1) if images.shape[3] // blocks % n == 0)
        self.options = {
            "neigh_size": near,
            "n_labels": 3,
            "mean": 0.0,
            "std": 1.0,
            "t_eps": 0.8,
            "t_size": -1,
            "block_num": blocks,
        }
        self.partner = torch.arange(len(images)).roll(1).numpy()

    def __call__(self) -> tuple[Tensor, Any]:
        given = {"alpha": LAM, "transport": True, "device": "cpu", **self.options, **OPTIONS}
        return self.code.mixup_graph(self.images, self.maps, self.partner, **given)

    def labels(self) -> tuple[Tensor, Tensor]:
        """The labels that they find, and the mixed images."""
        found, find = [], self.code.graphcut_multi
        self.code.graphcut_multi = lambda *args: found.append(find(*args)) or found[-1]
        try:
            mixed = self()[0]
        finally:
            self.code.graphcut_multi = find
        return (2 - 2 * torch.tensor(np.stack(found))).round().long(), mixed

    def masks(self) -> None:
        """A call without the images that are moved."""
        move = self.code.transport_image
        self.code.transport_image = lambda images, *_: images
        try:
            self()
        finally:
            self.code.transport_image = move


def compare(theirs: Theirs, mix: fm.PuzzleMix) -> float:
    """The share of grids of which both find the same labels.

    Raises:
        AssertionError: theirs cost less, or images differ though labels are the same.
    """
    images, cells = theirs.images, mix.cells
    plan = mix.sample(len(images), images.shape[2:], lam=LAM, importance=theirs.maps, images=images)
    height, width = (side // count for side, count in zip(plan.size, cells, strict=True))
    ours = (2 - 2 * plan.mask()[:, ::height, ::width]).round().long()
    labels, mixed = theirs.labels()
    unlike = border_costs(images, plan.partner, torch.ones(images.shape[1]), cells)
    costs = energies(shares(theirs.maps, cells), unlike, plan.partner, plan.lam, Weights(**OPTIONS))

    def energy(labels: Tensor) -> Tensor:
        unary, right, down = (cost.long() for cost in costs)
        pairs = (right * labels.diff(dim=2) ** 2).sum((1, 2)) + (down * labels.diff(dim=1) ** 2).sum((1, 2))
        return unary.gather(3, labels[..., None]).sum((1, 2, 3)) + pairs

    assert (energy(labels) >= energy(ours)).all(), "labels of theirs cost less"
    same = (labels == ours).flatten(1).all(1)
    assert torch.allclose(fm.mix(images, plan)[same], mixed[same], atol=1e-4), "the mixed images differ"
    return float(same.double().mean())


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("folder", type=Path, help="a checkout of the authors' code")
    arguments.add_argument("--threads", type=int, default=2, help="of torch")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    code, rounds = authors(given.folder), 2 if given.quick else 7
    images, maps = batch(*((4, 32) if given.quick else (64, 224)))
    rows, calls, same = [], {}, {}
    for blocks in (2, 4) if given.quick else (2, 4, 8, 16):
        theirs = Theirs(code, images, maps, blocks)
        mix = fm.PuzzleMix(cells=blocks, **OPTIONS)
        same[blocks] = compare(theirs, mix)
        for provider, call in (
            ("fusedmix", lambda mix=mix: mix.sample(len(images), images.shape[2:], importance=maps, images=images)),
            ("authors", theirs.masks),
        ):
            backend = choose("cpu") if provider == "fusedmix" else ""
            rows.append(Timing("wall", provider, f"masks-{blocks}x{blocks}", "PuzzleMix", backend, per="batch"))
            rows[-1].shape = "x".join(map(str, images.shape))
            calls[len(rows) - 1] = wall(call)
    interleave(calls, 1)
    for index, times in interleave(calls, rounds).items():
        rows[index].record(times)
    ratios = {blocks: b.median_us / a.median_us for blocks, a, b in zip(same, rows[::2], rows[1::2], strict=True)}
    checks = [Check(f"masks of {n}x{n} blocks", ratio, TARGET, "x", at_least=True) for n, ratio in ratios.items()]
    if not given.quick or given.out is not None:
        env = environment(torch.device("cpu"), given.commit)
        write_csv((given.out or RESULTS) / f"{given.name or 'cpu'}-puzzle.csv", rows, env)
    lines = [
        (f"{n}x{n}", f"{a.median_us / 1e3:.1f}", f"{b.median_us / 1e3:.1f}", f"{ratios[n]:.1f}", f"{same[n]:.0%}")
        for n, a, b in zip(same, rows[::2], rows[1::2], strict=True)
    ]
    print(markdown(("blocks", "fusedmix, ms", "authors, ms", "ratio", "same labels"), lines))
    print()
    print(targets_table(checks))
    return 0 if given.quick or all(check.met for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
