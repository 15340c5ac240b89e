"""pytest as pyproject.toml sets it: what is thorough is asked for, and a test that hangs is ended and named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import ctypes
import pytest

def test_passes(): pass

@pytest.mark.thorough
def test_takes_long(): pass

def test_hangs_in_python():
    while True: pass

def test_hangs_in_c():
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
"""


def run(folder, tests, *options):
    """Some of TESTS, by pytest in a process of its own: exit status and all that was said."""
    path = folder / "test_some.py"
    path.write_text(TESTS)
    names = [f"{path}::{test}" for test in tests]
    settings = ["-c", ROOT / "pyproject.toml", f"--rootdir={folder}", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *names, *settings, *options]
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), ["test_passes"]),
        (("-m", "thorough"), ["test_takes_long"]),
        (("-m", "thorough or not thorough"), ["test_passes", "test_takes_long"]),
        (("-m", ""), ["test_passes", "test_takes_long"]),
    ],
    ids=str,
)
def test_which_tests_run(tmp_path, options, names):
    code, said = run(tmp_path, ("test_passes", "test_takes_long"), "-v", *options)
    assert code == 0
    assert re.findall(r"::(\w+) PASSED", said) == names


def test_a_test_that_hangs_is_ended_and_named(tmp_path):
    pytest.importorskip("pytest_timeout")
    code, said = run(tmp_path, ("test_hangs_in_python", "test_passes"), "-o", "timeout=1")
    assert code == 1
    assert "1 failed, 1 passed" in said
    assert "FAILED test_some.py::test_hangs_in_python" in said
    assert "Timeout (>1.0s)" in said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the mutex is one of Linux")
@pytest.mark.parametrize("options", [(), pytest.param(("-n", "1"), marks=pytest.mark.thorough)], ids=["alone", "xdist"])
def test_a_test_that_hangs_in_c_takes_its_process_along(tmp_path, options):
    if pytest.version_tuple < (9, 0):
        pytest.skip("faulthandler_exit_on_timeout came with pytest 9")
    if options:
        pytest.importorskip("xdist")
    limits = ("-o", "timeout=0", "-o", "faulthandler_timeout=2")
    code, said = run(tmp_path, ("test_hangs_in_c", "test_passes"), *limits, *options)
    assert code == 1
    assert "in test_hangs_in_c" in said
    assert not options or "crashed while running 'test_some.py::test_hangs_in_c'" in said
