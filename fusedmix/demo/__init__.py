"""What `fusedmix demo` does: photographs mixed with every method, then short training runs with some, where labels are
wrong and where they are right.

Importing this needs nothing beyond torch; the packages of the extra `demo` are imported when it runs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from fusedmix import backends
from fusedmix.bench.environment import environment
from fusedmix.bench.results import write_csv

# Import name -> name to install
_PACKAGES = {"matplotlib": "matplotlib", "skimage": "scikit-image", "sklearn": "scikit-learn", "tqdm": "tqdm"}
# Runs behind every mean, and the methods that are trained with: on two cores all of it stays below three minutes.
SEEDS = 5
TRAINED = ("MixUp", "CutMix", "HMix (released)", "GMix (released)", "FMix (paper)")


def missing_packages() -> list[str]:
    """The packages that the demo needs and that are not installed here."""
    return [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]


def run(out: Path, *, seed: int, epochs: int, skip_training: bool) -> list[Path]:
    """Run the demo, tell what it does, and return the files it wrote into the folder `out`."""
    from fusedmix.demo.methods import METHODS, mix_with
    from fusedmix.demo.photos import load_photos
    from fusedmix.demo.sheet import draw_sheet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = backends.choose(device)
    print(f"fusedmix demo: device {device}, backend {backend}, seed {seed}\n")

    images, names = load_photos()
    print(f"Mixing {len(names)} photographs ({', '.join(names)}), {tuple(images.shape)} {images.dtype}:")
    mixtures = [mix_with(method, images.to(device), seed=seed) for method in METHODS]
    for mixture in mixtures:
        lam, weight = mixture.plan.lam, mixture.plan.weight
        print(
            f"  {mixture.method.name:<16} λ {lam.min():.2f} to {lam.max():.2f}, "
            f"label weights {weight.min():.2f} to {weight.max():.2f}"
        )
    written = [out / "methods.png"]
    draw_sheet(images, names, mixtures, written[0], subtitle=f"backend {backend}, seed {seed}")

    if not skip_training:
        from fusedmix.demo import results, train

        print(f"\n{train.describe(epochs, SEEDS)}")
        trained = [method for method in METHODS if method.name in TRAINED]
        try:
            runs = train.compare(range(seed, seed + SEEDS), epochs, device, methods=trained)
        except KeyboardInterrupt:
            print(f"\nWritten before the interruption:\n  {written[0]}")
            raise
        for same in results.conditions(runs).values():
            print(f"\n{results.headline(same)}\n\n{results.table(same)}")
        print(f"\n{results.NOTES}")
        written += [out / "training.csv", out / "training.png"]
        write_csv(written[1], runs, environment(torch.device(device)))
        results.draw(runs, written[2])

    print("\nWritten:", *(f"  {path}" for path in written), sep="\n")
    return written
