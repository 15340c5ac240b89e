"""How many test cases passed for each backend and each integration, against the minimum in minimum_cases.json.

A library that is absent, or a backend that does not build, must not turn tests off unnoticed: where CI=true runs the
whole suite, a count below its minimum fails the run. The hooks are pytest's; conftest.py imports them.

minimum_cases.json: {name: {"cases": a regular expression, searched in the ids of tests, "minimum": a number}}.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

MINIMA = json.loads(Path(__file__).with_name("minimum_cases.json").read_text(encoding="utf-8"))
PATTERNS = {name: re.compile(entry["cases"]) for name, entry in MINIMA.items()}
COUNTS: Counter[str] = Counter()  # of this process; that of pytest-xdist's controller hears of every worker's tests


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        COUNTS.update(name for name, pattern in PATTERNS.items() if pattern.search(report.nodeid))


def too_few(counts):
    """What was counted less often than it must be."""
    return [name for name, entry in MINIMA.items() if counts[name] < entry["minimum"]]


def whole_suite(config):
    """Whether nothing was selected or left out, and CI asks."""
    selecting = ("keyword", "deselect", "ignore", "lf", "maxfail", "collectonly")
    return (
        os.environ.get("CI") == "true"
        and config.args_source is pytest.Config.ArgsSource.TESTPATHS
        and config.getoption("markexpr") in ("", "thorough or not thorough")
        and not any(config.getoption(name, None) for name in selecting)
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    config = session.config
    is_worker = hasattr(config, "workerinput")
    if not is_worker and whole_suite(config) and too_few(COUNTS) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    enforced = whole_suite(config)
    shown = {name: entry for name, entry in MINIMA.items() if enforced or COUNTS[name]}
    if shown:
        terminalreporter.section("cases that passed")
    for name, entry in shown.items():
        line = f"{name:<24} {COUNTS[name]:>6}, minimum {entry['minimum']}"
        failed = enforced and COUNTS[name] < entry["minimum"]
        terminalreporter.write_line(f"{line}: TOO FEW" if failed else line, red=failed)
