"""tests/agreement.csv: a line for every method, per, pairing and backend, of what test_agreement.py found.

A run is compared with the committed lines of the backends and methods that it meets. A backend without a line there,
such as those of a GPU before one has written them, or a method that is new, is compared with the reference all the same
and misses nothing here.

With --write-agreement lines travel with the reports of the tests, so they may be written by a run with pytest-xdist.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import pytest

TABLE = Path(__file__).resolve().with_name("agreement.csv")
PROPERTY = "agreement"  # of a report: a line, as a list of strings
UPDATE = "pytest -m '' tests/test_agreement.py --write-agreement"


class Key(NamedTuple):
    """A line of the table, but for what was found."""

    method: str
    per: str
    pairing: str
    backend: str


class Found(NamedTuple):
    dtypes_and_layouts: str  # how many of their combinations were checked, of all
    cases: str  # operator calls that were checked
    pixels: str  # values in their results
    agree: str  # "yes" if each of them was right, else "no": of what was checked up to the first that was not


def read(path=TABLE):
    """The lines of a file, none where there is no file.

    Raises:
        pytest.UsageError: it is another file, with other columns.
    """
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        columns, *rows = list(csv.reader(file)) or [[]]
    expected = [*Key._fields, *Found._fields]
    if columns != expected:
        raise pytest.UsageError(f"{path} is no table of agreement: its first line must be {','.join(expected)}.")
    n = len(Key._fields)
    lines = {Key(*row[:n]): Found(*row[n:]) for row in rows}
    assert len(lines) == len(rows), f"{path} has a line twice"
    return lines


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([[*Key._fields, *Found._fields], *([*key, *lines[key]] for key in sorted(lines))])


def difference(committed, key, found):
    """How a line that was found differs from the committed one, as a message, or None."""
    known = all(getattr(key, of) in {getattr(line, of) for line in committed} for of in ("method", "backend"))
    if not known or committed.get(key) == found:
        return None
    line = "no line" if key not in committed else ",".join((*key, *committed[key]))
    return f"stale: {UPDATE}\n  committed: {line}\n  found:     {','.join((*key, *found))}"


class Writer:
    """A plugin: writes what a run has found to a file.

    Lines of other backends stay as they stand in the file, or, if there is none yet, in the committed one. Of a backend
    that was met they are all replaced: a test that did not come to an end leaves none that an older run wrote.
    """

    def __init__(self, path):
        self.path = path
        self.before = read(path if path.exists() else TABLE)
        self.found = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            n = len(Key._fields)
            self.found |= {Key(*v[:n]): Found(*v[n:]) for name, v in report.user_properties if name == PROPERTY}

    def pytest_sessionfinish(self):
        met = {key.backend for key in self.found}
        kept = {key: line for key, line in self.before.items() if key.backend not in met}
        write(self.path, kept | self.found)
