"""What each method does to a small network: accuracy, calibration and seconds an epoch, over several seeds.

    python -m benchmarks.accuracy [--seeds 5] [--epochs 30] [--data DIR] [--quick]

On scikit-learn's digits, which come with it, or on a folder of images DIR: with a folder for each class, as
torchvision's ImageFolder takes it, of which a fifth is held back, or with such folders train and val (or test). Writes
accuracy.csv and, into docs/pictures, accuracy.png; with --out both go there, and with --data into the working
directory.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

from benchmarks.common import RESULTS, ROOT, parser
from fusedmix.bench.environment import environment
from fusedmix.bench.results import markdown, write_csv
from fusedmix.demo import results
from fusedmix.demo.train import NO_MIXING, Run, Split, compare, corrupt

HELD_BACK = 0.2


@dataclass(frozen=True)
class Row:
    """One training."""

    method: str
    corrupted_percent: float
    seed: int
    accuracy_percent: float
    ece_percent: float
    seconds_an_epoch: float
    epochs: int


def as_rows(runs: list[Run], epochs: int) -> list[Row]:
    """The runs, as they are written."""
    return [
        Row(
            method=run.method,
            corrupted_percent=100 * run.corrupted,
            seed=run.seed,
            accuracy_percent=100 * run.accuracy,
            ece_percent=100 * run.ece,
            seconds_an_epoch=run.seconds / epochs,
            epochs=epochs,
        )
        for run in runs
    ]


def table(rows: list[Row]) -> str:
    """A line for every method: means over the seeds ± their standard errors, and what of the accuracy is gained on the
    runs without mixing, seed by seed, for these have the same data and the same network."""
    conditions = list(dict.fromkeys(row.corrupted_percent for row in rows))
    at = {(row.method, row.corrupted_percent, row.seed): row for row in rows}
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        cells = []
        for condition in conditions:
            of = [row for row in rows if (row.method, row.corrupted_percent) == (method, condition)]
            gained = [row.accuracy_percent - at[NO_MIXING, condition, row.seed].accuracy_percent for row in of]
            cells += [_mean(row.accuracy_percent for row in of), "" if method == NO_MIXING else _mean(gained, "+")]
            cells.append(_mean(row.ece_percent for row in of))
        lines.append((method, *cells, f"{min(row.seconds_an_epoch for row in rows if row.method == method):.3f}"))
    header = ["mean ± s.e."]
    for condition in conditions:
        labels = f"{condition:.0f}% of labels random" if condition else "clean labels"
        header += [f"accuracy %, {labels}", "gained", "ECE %"]
    return markdown((*header, "seconds an epoch"), lines)


def _mean(values: object, sign: str = "") -> str:
    found = list(values)  # type: ignore[call-overload]
    error = f" ± {stdev(found) / math.sqrt(len(found)):.1f}" if len(found) > 1 else ""
    return f"{fmean(found):{sign}.1f}{error}"


def load_folder(folder: Path, side: int, seed: int, corrupted: float, device: torch.device | str) -> Split:
    """The images of a folder, each cropped to its middle square of `side` pixels, and their classes."""
    train, test = ([_folder(folder / name, side) for name in names if (folder / name).is_dir()] for names in _PARTS)
    if train and test:
        (train_images, train_labels, names), (test_images, test_labels, others) = train[0], test[0]
        if names != others:
            raise ValueError(f"the folders of {folder} must have the same classes, but have {names} and {others}")
    else:
        images, labels, names = _folder(folder, side)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        held = order[: max(1, round(HELD_BACK * len(images)))]
        kept = order[len(held) :]
        (train_images, train_labels), (test_images, test_labels) = ((images[i], labels[i]) for i in (kept, held))
    train_labels = train_labels.clone()
    corrupt(train_labels, corrupted, seed, len(names))
    return Split(train_images, train_labels, test_images, test_labels, len(names)).to(device)


_PARTS = (("train",), ("val", "test"))
_LOADED: dict[tuple[Path, int], tuple[Tensor, Tensor, list[str]]] = {}


def _folder(folder: Path, side: int) -> tuple[Tensor, Tensor, list[str]]:
    """(N, 3, side, side) float32 in [0, 1], (N,) int64, and the names of the classes."""
    key = folder, side
    if key not in _LOADED:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        change = v2.Compose([v2.ToImage(), v2.Resize(side), v2.CenterCrop(side), v2.ToDtype(torch.float32, scale=True)])
        found = ImageFolder(str(folder), change)
        images, labels = zip(*found, strict=True)
        _LOADED[key] = torch.stack([torch.as_tensor(x) for x in images]), torch.tensor(labels), found.classes
    return _LOADED[key]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=5, help="trainings of each method")
    arguments.add_argument("--epochs", type=int, default=30)
    arguments.add_argument("--data", type=Path, metavar="DIR", help="a folder of images in folders of classes")
    arguments.add_argument("--side", type=int, default=32, help="to which these are cropped, a multiple of 4")
    given = arguments.parse_args()
    seeds, epochs = (2, 2) if given.quick else (given.seeds, given.epochs)
    if given.data is not None and not given.data.is_dir():
        arguments.error(f"argument --data: {given.data} is no folder")
    if seeds < 1 or epochs < 1 or given.side < 4 or given.side % 4:
        arguments.error("--seeds and --epochs must be at least 1, and --side a multiple of 4")
    own = given.data is not None
    out: Path = given.out or (Path() if own else RESULTS)
    pictures: Path = given.out or (Path() if own else ROOT / "docs" / "pictures")
    name = given.name or "accuracy"
    load = {"load": partial(load_folder, given.data, given.side)} if own else {}
    runs = compare(range(seeds), epochs, "cpu", **load)
    rows = as_rows(runs, epochs)
    write_csv(out / f"{name}.csv", rows, environment(torch.device("cpu"), given.commit))
    results.draw(runs, pictures / f"{name}.png")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
