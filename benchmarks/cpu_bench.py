"""Whole steps on a CPU beside those of the peers: `fusedmix bench` for every method, per batch and per sample.

    python -m benchmarks.cpu_bench [--threads 2] [--out benchmarks/results] [--quick]

float32, 512x3x32x32 and 128x3x224x224. Writes cpu-bench.csv, cpu-bench-environment.json and, into docs/pictures or
--out, cpu-bench.png. Exit status 1: somebody was not shown to do the same.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.common import RESULTS, ROOT, parser
from fusedmix import bench
from fusedmix.bench.cases import METHODS, PEERS, Case, product_of


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="of torch")
    arguments.add_argument("--rounds", type=int, default=11)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    out, pictures, name = given.out or RESULTS, given.out or ROOT / "docs" / "pictures", given.name or "cpu-bench"
    cases = list(product_of({"method": METHODS, "per": ("batch", "sample"), "size": (32, 224)}))
    peers = PEERS
    if given.quick:
        cases = [Case("CutMix", "sample", 16, 4, classes=10), Case("MixUp", "batch", 16, 4, classes=10)]
        peers = tuple(peer for peer in PEERS if peer != "torch.compile")
    options = {"device": torch.device("cpu"), "peers": peers, "rounds": 2 if given.quick else given.rounds}
    clean = bench.run(out, cases, quick=given.quick, commit=given.commit, name=name, **options)
    (out / f"{name}.md").unlink()  # docs/performance.md has it
    (out / f"{name}.png").replace(pictures / f"{name}.png")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
