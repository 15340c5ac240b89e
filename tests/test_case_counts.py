"""Cases are counted and held against their minimum, with pytest-xdist as without, where CI runs the whole suite."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import case_counts

TESTS = """
import pytest

@pytest.mark.parametrize("backend", ["one", "two", pytest.param("two too", marks=pytest.mark.thorough)])
def test_passes(backend): pass

def test_is_skipped(): pytest.importorskip("a_library_that_is_absent")
"""


def run(folder, minimum, *options, ci="true"):
    (folder / "tests").mkdir(exist_ok=True)
    shutil.copy(case_counts.__file__, folder / "tests")
    (folder / "pytest.ini").write_text(
        "[pytest]\ntestpaths = tests\nmarkers = thorough: slow\naddopts = -m 'not thorough'\n"
    )
    (folder / "tests" / "conftest.py").write_text(
        "from case_counts import pytest_runtest_logreport, pytest_sessionfinish, pytest_terminal_summary\n"
    )
    (folder / "tests" / "test_some.py").write_text(TESTS)
    minima = {"two": {"cases": r"\[two", "minimum": minimum}, "absent": {"cases": "skipped", "minimum": 0}}
    (folder / "tests" / "minimum_cases.json").write_text(json.dumps(minima))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**{key: value for key, value in os.environ.items() if "PYTEST" not in key}, "CI": ci},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("options", [("-m", ""), ("-m", "thorough or not thorough", "-n", "2")], ids=["alone", "xdist"])
def test_counts(tmp_path, options):
    if "-n" in options:
        pytest.importorskip("xdist")
    code, printed = run(tmp_path, 2, *options)
    assert code == 0
    assert "two                           2, minimum 2" in printed
    assert "absent                        0, minimum 0" in printed
    code, printed = run(tmp_path, 3, *options)
    assert code == 1
    assert "two                           2, minimum 3: TOO FEW" in printed


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "ci"),
    [
        (("-m", ""), ""),
        ((), "true"),  # those that are not thorough
        (("-m", "thorough"), "true"),
        (("-m", "", "-k", "one"), "true"),
        (("-m", "", "tests/test_some.py"), "true"),
    ],
)
def test_a_part_of_the_suite_or_no_ci(tmp_path, options, ci):
    code, printed = run(tmp_path, 3, *options, ci=ci)
    assert code == 0
    assert "TOO FEW" not in printed


def test_the_patterns_name_tests_that_exist():
    root = Path(__file__).parents[1]
    files = [path.relative_to(root).as_posix() for path in root.glob("tests/**/test_*.py")]
    for name, pattern in case_counts.PATTERNS.items():
        ids = [f"{file}::test[{backend}]" for file in files for backend in ("", name)]
        assert any(pattern.search(node) for node in ids), name
