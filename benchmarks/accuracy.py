"""What each method does to a small network: accuracy, calibration and seconds an epoch, over several seeds.

    python -m benchmarks.accuracy [--seeds 5] [--epochs 30] [--data DIR] [--quick]

On scikit-learn's digits, which come with it, or on a folder of images DIR: with a folder for each class, as
torchvision's ImageFolder takes it, of which a fifth is held back, or with such folders train and val (or test). Of the
images to train on another fifth is held back, to fit temperatures on. Writes accuracy.csv and, into docs/pictures,
accuracy.png; with --out both go there, and with --data into the working directory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import RESULTS, ROOT, parser
from fusedmix.bench.environment import environment
from fusedmix.bench.results import write_csv
from fusedmix.demo import results
from fusedmix.demo.train import Run, Split, compare, corrupt

HELD_BACK = 0.2


def tables(runs: Sequence[Run]) -> list[str]:
    """A table for each share of wrong labels, with seconds an epoch."""
    return [results.table(same, times=True) for same in results.conditions(runs).values()]


def load_folder(folder: Path, side: int, seed: int, corrupted: float, device: torch.device | str) -> Split:
    """The images of a folder, each cropped to its middle square of `side` pixels, and their classes."""
    train, test = ([_folder(folder / name, side) for name in names if (folder / name).is_dir()] for names in _PARTS)
    if train and test:
        (images, labels, names), (test_images, test_labels, others) = train[0], test[0]
        if names != others:
            raise ValueError(f"the folders of {folder} must have the same classes, but have {names} and {others}")
        kept = torch.arange(len(images))
    else:
        images, labels, names = _folder(folder, side)
        held, kept = _apart(torch.arange(len(images)), seed)
        test_images, test_labels = images[held], labels[held]
    validation, kept = _apart(kept, seed + 1)
    train_labels = labels[kept]
    corrupt(train_labels, corrupted, seed, len(names))
    split = Split(
        images[kept], train_labels, images[validation], labels[validation], test_images, test_labels, len(names)
    )
    return split.to(device)


def _apart(indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A fifth of the indices, drawn at random, and the others."""
    indices = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))]
    held = max(1, round(HELD_BACK * len(indices)))
    return indices[:held], indices[held:]


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
    write_csv(out / f"{name}.csv", runs, environment(torch.device("cpu"), given.commit))
    results.draw(runs, pictures / f"{name}.png")
    print(*tables(runs), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
