"""A plugin of pytest that writes what fails, and what takes long, to a file at once.

    python -m pytest -p benchmarks.failures --write-failures=FILE ...

A lent GPU may be gone before pytest reports, and processes that are interrupted in the middle of a test may not report.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LONG = 5.0  # seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-failures", metavar="FILE", help="write what fails, and what takes long, to FILE at once")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--write-failures")
    if path and not hasattr(config, "workerinput"):  # a worker's reports come to the process that started it
        config.pluginmanager.register(_Writer(Path(path)))


class _Writer:
    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.duration > LONG:
            print(f"{report.duration:6.1f} s {report.when} {report.outcome} {report.nodeid}", file=self.file)
        if report.failed:
            print("\n".join(report.longreprtext.splitlines()[-25:]), end="\n\n", file=self.file)


def failed(path: Path) -> list[str]:
    """The tests that such a file says failed."""
    return re.findall(r"^ *[\d.]+ s \w+ failed (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
