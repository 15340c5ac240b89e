"""Two commits are compared: each with its own sources, slower is called slower, and counts are the same every time.

The figures of unchanged calls are not looked at: the machine is busy with other tests.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusedmix.backends import native

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is no part of what is installed

from benchmarks import compare, count  # noqa: E402

needs_cpp = pytest.mark.skipif(native.why_not("cpp") is not None, reason=str(native.why_not("cpp")))
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

# Appended to the second commit: one function is slow, another is gone.
_SLOW = """
_of_base = mix_labels


def mix_labels(*args, **kwargs):
    import time

    time.sleep(0.02)
    return _of_base(*args, **kwargs)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """What is here now, and a commit whose labels take 20 ms and which has no GMix."""
    folder = tmp_path_factory.mktemp("repository")
    for part in ("fusedmix", "csrc", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "results", "_native")
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    shutil.copy(ROOT / "CMakeLists.txt", folder)

    def git(*words):
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)

    git("init", "-b", "main")
    for tag in ("now", "slow"):
        if tag == "slow":
            for path, text in (
                ("fusedmix/mixing.py", _SLOW),
                ("fusedmix/transforms.py", "\n__all__.remove('GMix')\n"),
            ):
                with (folder / path).open("a") as file:
                    file.write(text)
        git("add", "-A")
        git("commit", "-m", tag)
        git("tag", tag)
    return folder


@pytest.fixture
def run(repository, monkeypatch, capsys):
    """Exit status, output and errors of a comparison, which must leave nothing behind."""

    def call(*arguments):
        command = ["compare", *map(str, arguments), "--repository", str(repository)]
        monkeypatch.setattr(sys, "argv", command)
        status = compare.main()
        assert len(list((repository / ".git").glob("worktrees/*"))) == 0
        return status, *capsys.readouterr()

    return call


def verdicts(output):
    """The last column of the table, by call."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[:1] == "|"]
    return {row[0]: row[-1] for row in cells[2:]}


@pytest.mark.thorough
@needs_git
@needs_cpp
def test_times(run):
    # The library that other tests built: both commits have the sources of here.
    native.load("cpp")
    options = ("--quick", "--cache", native._cache_root(), "--threshold", 2, "-k", "mix_labels-small|^mix_-GMix-small")

    status, said, _ = run("now", "slow", *options)
    assert status == 1
    assert verdicts(said) == {"mix_labels-small": "SLOWER"}
    assert re.search(r"^head: mix_-GMix-small: AttributeError: .*GMix", said, re.MULTILINE)
    library = native._loaded["cpp"]
    for side in ("base", "head"):
        assert re.search(rf"^{side}: [0-9a-f]{{12}}, (.*)$", said, re.MULTILINE)[1] == str(library)
    assert native._hash("cpp") in library.parent.name

    status, said, _ = run("slow", "now", *options)
    assert status == 0
    assert verdicts(said) == {"mix_labels-small": "faster"}
    assert "base: mix_-GMix-small: AttributeError" in said


@pytest.mark.thorough
@needs_git
@needs_cpp
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_instructions(run, tmp_path):
    shim_build = pytest.importorskip("shim_build")
    options = ("--instructions", "--cache", shim_build.cache(), "-k", "^mix_-MixUp-(32|112)$", "--out", tmp_path)
    assert run("now", "slow", *options)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"compare.csv", "compare-environment.json"}
    found = [line.split(",") for line in (tmp_path / "compare.csv").read_text().splitlines()[1:]]
    counted = {row[0]: (float(row[2]), float(row[3])) for row in found}
    assert set(counted) == {"mix_-MixUp-32", "mix_-MixUp-112"}
    for base, head in counted.values():
        assert head == pytest.approx(base, rel=0.005)
    # What is counted is the work: at least one instruction for 32 bytes, the widest vector there is.
    for side in (32, 112):
        assert counted[f"mix_-MixUp-{side}"][0] > 16 * 3 * side * side / 8
    assert counted["mix_-MixUp-112"][0] > 2 * counted["mix_-MixUp-32"][0]


@needs_git
def test_what_is_missing_is_said(run, monkeypatch, tmp_path):
    status, _, said = run("now", "nowhere")
    assert status == 2
    assert "git rev-parse --verify nowhere^{commit}" in said
    (tmp_path / "git").symlink_to(shutil.which("git"))
    monkeypatch.setenv("PATH", str(tmp_path))  # and nothing else
    status, _, said = run("now", "--instructions")
    assert status == 2
    assert said == "compare: counting instructions needs valgrind, which is not found: apt install valgrind\n"


def test_a_process_must_use_its_own_commit(tmp_path):
    side = compare.Side("base", "0" * 40, tmp_path / "tree", tmp_path / "cache")
    own = {"package": f"{side.tree}/fusedmix/__init__.py", "library": f"{side.cache}/cpp/fusedmix_cpp.so"}
    compare.check_origin(side, own)
    for what in own:
        with pytest.raises(compare.CompareError, match=f"{what} in .*, but it uses {ROOT}"):
            compare.check_origin(side, {**own, what: f"{ROOT}/fusedmix/{what}"})


def test_a_build_that_fails_says_why(tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.20)\nproject(none LANGUAGES NONE)\n")
    with pytest.raises(count.CountError, match="cmake --build"):
        count.build(tree, ROOT / "csrc/benchmarks/count.cpp", tmp_path / "build")


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.3])
def test_a_ratio_without_noise_is_exact(ratio):
    assert compare.ratio_of([[(2.0, 2.0 * ratio)] * 4] * 3) == (ratio, ratio, ratio)


def test_the_interval_of_a_ratio():
    # Processes that disagree: the interval holds what each of them says.
    middle, low, high = compare.ratio_of([[(1.0, 1.0)] * 5, [(1.0, 1.3)] * 5, [(1.0, 1.3)] * 5])
    assert (middle, low, high) == (1.3, 1.0, 1.3)
    # Head and base in each other's place: ratios turn over, and so does the interval.
    import random

    draw = random.Random(0)
    turns = [[(draw.uniform(1, 2), draw.uniform(1, 2)) for _ in range(9)] for _ in range(5)]
    middle, low, high = compare.ratio_of(turns)
    turned = compare.ratio_of([[(head, base) for base, head in process] for process in turns])
    assert low < middle < high
    assert turned == pytest.approx((1 / middle, 1 / high, 1 / low), rel=0.1)
    # And more turns make it narrower.
    more = [[(draw.uniform(1, 2), draw.uniform(1, 2)) for _ in range(900)] for _ in range(5)]
    _, lower, higher = compare.ratio_of(more)
    assert higher / lower < (high / low) ** 0.5


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.11, 1.3, "SLOWER"), (1.05, 1.3, ""), (0.7, 1.2, ""), (0.8, 0.95, ""), (0.5, 0.9, "faster")],
)
def test_verdict(low, high, verdict):
    assert compare.Comparison("x", "us", 1.0, 1.0, (low + high) / 2, low, high, 1.1).verdict == verdict
