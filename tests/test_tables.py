"""What tables of the documents say beside their figures: that kernels have changed, that a machine was busy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks is no part of what is installed

from benchmarks import tables
from fusedmix.bench.environment import ENVIRONMENT
from fusedmix.bench.results import write_csv
from fusedmix.bench.timing import Timing


def test_a_table_says_that_its_kernels_have_changed(tmp_path, monkeypatch):
    def git(*words):
        name = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *name, *words], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    for name in ("csrc/cpu/mix.cpp", "README.md"):
        (tmp_path / name).write_text("1")
    git("init", "-b", "main")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    environment = {"device": "AMD EPYC", "torch": "2.14", "commit": "HEAD", "date": "2026-01-02T03:04:05"}
    words = "; the kernels have changed since.*"
    for changed, commands in (("README.md", ()), ("csrc/cpu/mix.cpp", ("python -m benchmarks.cpu_mix",))):
        (tmp_path / changed).write_text("2")
        tables.differs.cache_clear()
        for command in ("python -m benchmarks.cpu_mix", "python -m benchmarks.gpu_mix", "python -m benchmarks.theory"):
            assert tables._source(command, environment).endswith(words) == (command in commands), (changed, command)
    assert tables.differs("abc", ("csrc",)) is None
    tables.differs.cache_clear()


def test_what_no_commit_has_is_not_shown(tmp_path, monkeypatch):
    row = {"measure": "wall", "provider": "fusedmix", "commit": "abc-dirty"}
    (tmp_path / "cpu-loss.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.made(tables.cpu_loss).startswith("There are no results: `cpu-loss.csv` was measured with changes")


def test_what_varies_has_no_ratio(tmp_path, monkeypatch):
    """Medians with their percentiles; the second pair is of a busy machine."""

    from benchmarks import tables

    def timing(provider, k, *times):
        median, low, high = times
        shape = f"256x{k}"
        return Timing("wall", provider, "loss", dtype="float32", shape=shape, median_us=median, p20_us=low, p80_us=high)

    rows = [timing("fusedmix", 10, 2e3, 1.5e3, 2.5e3), timing("torch", 10, 7e3, 6e3, 8e3)]
    rows += [timing("fusedmix", 20, 2e3, 1e3, 2.5e3), timing("torch", 20, 7e3, 6e3, 8e3)]
    environment = dict.fromkeys(ENVIRONMENT, "") | {"torch": "2.15", "commit": "HEAD", "date": "2026-01-02"}
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    write_csv(tmp_path / "cpu-loss.csv", rows, environment | {"device": "AMD EPYC"})
    made = tables.cpu_loss()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made.splitlines()[2:4]]
    theirs = "7.00 (6.00 to 8.00)"
    assert cells[0] == ["`loss`, 256×10, float32", "2.00 (1.50 to 2.50)", theirs, "3.5"]
    assert cells[1] == ["`loss`, 256×20, float32", "2.00 (1.00 to 2.50) (busy)", theirs, ""]
    assert "(busy): 1 of 4 measurements" in made
