"""The numbers and pictures of docs/analysis.md: the figures of fusedmix.analysis, with the environment in each CSV.

python -m benchmarks.theory
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.common import RESULTS, ROOT, parser
from fusedmix.analysis import curves, examples, moons
from fusedmix.bench.environment import environment
from fusedmix.bench.results import write_csv

DOCS = ROOT / "docs"
WIDTH, QUALITY = 720, 68  # of the sheet of photographs as a JPEG, below 200 kB


def main() -> int:
    args = parser(__doc__).parse_args()
    results: Path = args.out or RESULTS
    pictures: Path = args.out or DOCS
    env = environment(torch.device("cpu"), args.commit)
    shown, mixtures = examples.compute(quick=args.quick)
    found, steps = curves.compute(quick=args.quick), moons.compute(quick=args.quick)
    for name, rows in (("examples", shown), ("coefficients", found), ("moons", steps)):
        write_csv(results / f"theory-{name}.csv", rows, env)
    _draw_sheet(mixtures, pictures / "theory-examples.jpg")
    curves.draw(found, pictures / "theory-coefficients.png")
    moons.draw(steps, pictures / "theory-moons.png")
    return 0


def _draw_sheet(mixtures: list[examples.Mixture], path: Path) -> None:
    from PIL import Image  # comes with matplotlib

    whole = path.with_suffix(".png")
    examples.draw(mixtures, whole)
    with Image.open(whole) as sheet:
        small = sheet.convert("RGB").resize((WIDTH, sheet.height * WIDTH // sheet.width), Image.Resampling.LANCZOS)
    small.save(path, quality=QUALITY, optimize=True)
    whole.unlink()


if __name__ == "__main__":
    sys.exit(main())
