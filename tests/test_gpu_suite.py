"""The command that runs everything on a GPU: what it does on the CPU, with stages that fail, hang and pass."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from test_benchmarks import CHECK, SUMMARY, TIMING, rows

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is no part of what is installed

from benchmarks import gpu_suite  # noqa: E402

TESTS = """
import pytest

@pytest.mark.thorough
def test_passes(): pass

def test_fails(): assert False

def test_of_triton(): pass

@pytest.mark.skip(reason="an older peer")
def test_is_skipped(): pass
"""


@pytest.mark.thorough
def test_dry_run(tmp_path):
    pytest.importorskip("torchvision")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -m 'not thorough'\nmarkers = thorough: slow\n")
    out = tmp_path / "out"
    env = {**os.environ, "FUSEDMIX_BACKEND": "reference", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.gpu_suite", "--dry-run", "--commit", "abc"),
            *(
                "--stages",
                "benchmark,tests,triton,memcheck",
                "--tests",
                str(tmp_path / "test_some.py"),
                "--out",
                str(out),
            ),
        ],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr  # a test failed
    names = ("suite.json", "mix.csv", "targets.csv", "environment.json")
    assert {path.name for path in out.iterdir()} == {f"dry-run-{name}" for name in names}
    found = json.loads((out / "dry-run-suite.json").read_text())
    assert found["environment"]["commit"] == "abc"
    assert found["environment"]["torch"] == torch.__version__
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert {name: stage["result"] for name, stage in stages.items()} == {
        "benchmark": "pass",
        "tests": "fail",
        "triton": "pass",
        "memcheck": "not run",
    }
    assert "targets met" in stages["benchmark"]["detail"]
    assert any("test_fails" in line for line in stages["tests"]["output"])
    tests = found["tests"]["tests"]
    assert tests["counts"] == {"passed": 1, "failed": 1, "errors": 0, "skipped": 1}
    assert [name.rpartition("::")[2] for name in tests["failed"]] == ["test_fails"]
    assert tests["skipped"] == {"an older peer": 1}
    assert found["tests"]["triton"]["counts"] == {"passed": 1, "failed": 0, "errors": 0, "skipped": 0}
    for stage in stages.values():
        assert f"| {stage['name']}" in done.stdout

    timed = rows(out / "dry-run-mix.csv", TIMING | SUMMARY)
    assert {row["provider"] for row in timed} == {
        *("fusedmix", "torch", "torchvision", "torch.compile", "copy", "numpy"),
    }
    assert {row["dtype"] for row in timed} == {"float32", "bfloat16"}
    assert {row["measure"] for row in timed} == {"wall", "host", "first process", "later process"}
    assert all(float(row["copy_ratio"]) > 0 for row in timed if row["measure"] == "wall")
    limits = {row["limit"] for row in rows(out / "dry-run-targets.csv", CHECK)}
    assert {row["call"] for row in timed} >= {"mix_cross_entropy", "mix_binary_cross_entropy"}
    assert limits >= {"1.2", "3", "1.1", "1.05", "1.8", "2", "2.5", "4", "5", "8"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", ["gpu_suite", "gpu_mix"])
def test_without_a_gpu(module):
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{module}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1
    assert "no GPU" in done.stdout


@pytest.fixture
def suite(tmp_path):
    given = argparse.Namespace(dry_run=True, commit="abc", out=None, stages=["build"], tests="tests")
    return gpu_suite.Suite(given, tmp_path)


def test_a_stage_that_hangs_is_ended_with_all_that_it_started(suite, tmp_path):
    stage = gpu_suite.Stage("build")
    child = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], cwd={str(tmp_path)!r})"
    suite._command(stage, [sys.executable, "-c", code], 3)
    assert stage.result == "timeout"
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    until = time.monotonic() + 30
    # Gone, or a zombie until its new parent looks.
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_stage_that_fails_keeps_the_end_of_its_output(suite):
    stage = gpu_suite.Stage("build")
    code = f"print('{ROOT}/csrc/a.cu'); [print(i) for i in range(100)]; raise SystemExit(3)"
    output = suite._command(stage, [sys.executable, "-c", code], 60)
    assert stage.result == "fail"
    assert stage.output == [str(i) for i in range(60, 100)]
    assert output.startswith("csrc/a.cu")


def test_a_stage_that_is_interrupted_leaves_its_report(suite, tmp_path):
    stage = gpu_suite.Stage("tests")
    (tmp_path / "test_slow.py").write_text("import time\n\ndef test_a(): pass\n\ndef test_b(): time.sleep(600)\n")
    suite.given.tests = str(tmp_path / "test_slow.py")
    for limit in (15, 90):  # on a busy machine pytest takes its time to start
        suite._pytest(stage, limit, "test")
        if "tests" in suite.tests:
            break
    assert stage.result == "timeout"
    assert suite.tests["tests"]["counts"]["passed"] in (1, 2)  # pytest reports what was interrupted as passed
    assert stage.detail.endswith("unfinished")


def test_without_nvcc_the_stages_of_cuda_say_so(suite, monkeypatch):
    monkeypatch.setattr(gpu_suite.native, "why_not", lambda name: f"no compiler for {name}")
    suite.given.dry_run = False
    for run in (suite._build, suite._kernels):
        stage = gpu_suite.Stage("build")
        run(stage, 60)
        assert (stage.result, stage.detail) == ("not run", "no compiler for cuda")


@pytest.mark.parametrize("alone", ["cuda", "triton"])
def test_a_lost_benchmark_is_run_again_for_each_backend(suite, monkeypatch, alone):
    """The process ends without a result, unless one backend is left alone."""
    ran = []

    def command(stage, words, limit):
        ran.append(words[words.index("--backends") + 1] if "--backends" in words else "both")
        stage.result = "pass" if ran[-1] == alone else "fail"
        stage.output = [] if stage.result == "pass" else [f"{ran[-1]} died"]
        return "7 of 7 targets met" if stage.result == "pass" else "CUDA error"

    monkeypatch.setattr(suite, "_command", command)
    suite.given.dry_run = False
    stage = gpu_suite.Stage("benchmark")
    suite._benchmark(stage, 200)
    assert ran == (["both", "cuda"] if alone == "cuda" else ["both", "cuda", "triton"])
    assert (stage.result, stage.detail) == ("fail", "7 of 7 targets met")
    assert stage.output[0] == "both died"


def test_nothing_is_begun_when_time_is_up(suite):
    suite.ends = 0.0
    (stage,) = suite.run()
    assert (stage.result, stage.detail) == ("not run", "no time was left")
