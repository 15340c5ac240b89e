"""The guarded calls (regression.py) under pytest-benchmark: `pytest benchmarks/test_regression.py`.

`--benchmark-save`, `--benchmark-compare` and the others work as ever, but compare runs of different minutes;
`python -m benchmarks.compare BASE` measures two commits in turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.regression import CASES


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CASES)
def test_speed(benchmark: Any, name: str) -> None:
    benchmark.group = name.partition("-")[0]
    benchmark(CASES[name]())
