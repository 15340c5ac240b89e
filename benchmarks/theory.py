"""The numbers and pictures of docs/analysis.md: the figures of fusedmix.analysis, with the environment in each CSV.

python -m benchmarks.theory
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, ROOT, parser
from fusedmix.analysis import curves, design_curves, examples, moons, unbounded
from fusedmix.bench.environment import environment
from fusedmix.bench.results import write_csv

DOCS = ROOT / "docs"
WIDTH, QUALITY = 720, 68  # of the sheet of photographs as a JPEG, below 200 kB


FIGURES: dict[str, Any] = {
    "examples": examples,
    "coefficients": curves,
    "moons": moons,
    "designs": design_curves,
    "unbounded": unbounded,
}


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--figures", nargs="+", choices=FIGURES, default=list(FIGURES), help="which; all, if not said"
    )
    args = arguments.parse_args()
    results: Path = args.out or RESULTS
    pictures: Path = args.out or DOCS
    env = environment(torch.device("cpu"), args.commit)
    for name in args.figures:
        figure = FIGURES[name]
        found = figure.compute(quick=args.quick)
        if figure is examples:
            found, mixtures = found
            _draw_sheet(mixtures, pictures / "theory-examples.jpg")
        else:
            figure.draw(found, pictures / f"theory-{name}.png")
        write_csv(results / f"theory-{name}.csv", found, env)
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
