"""The command that runs everything on a GPU: what it does on the CPU, with stages that fail, hang and pass."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
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
from fusedmix.backends import native  # noqa: E402

TESTS = """
import pytest

@pytest.mark.thorough
def test_passes(): pass

def test_fails(): assert False

def test_of_triton(): pass

@pytest.mark.skip(reason="an older peer")
def test_is_skipped(): pass
"""


def stages_of(out):
    found = json.loads((out / "dry-run-suite.json").read_text())
    return found, {stage["name"]: stage for stage in found["stages"]}


@pytest.mark.thorough
def test_dry_run(tmp_path):
    pytest.importorskip("torchvision")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -m 'not thorough'\nmarkers = thorough: slow\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--dry-run", "--commit", "abc", "--out", out]
    command += ["--stages", "benchmark,tests,triton,memcheck", "--tests", tmp_path / "test_some.py"]
    env = {**os.environ, "FUSEDMIX_BACKEND": "reference", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr  # a test failed
    names = ("suite.json", "mix.csv", "targets.csv", "environment.json", "logs")
    assert {path.name for path in out.iterdir()} == {f"dry-run-{name}" for name in names}
    assert {path.name for path in (out / "dry-run-logs").iterdir()} == {
        *("tests.log", "tests-failures.txt", "triton.log", "triton-failures.txt", "benchmark.log")
    }
    assert "def test_fails" in (out / "dry-run-logs" / "tests.log").read_text()
    found, stages = stages_of(out)
    assert found["environment"]["commit"] == "abc"
    assert found["environment"]["torch"] == torch.__version__
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
    assert_everything_is_measured(out)


def assert_everything_is_measured(out):
    timed = rows(out / "dry-run-mix.csv", TIMING | SUMMARY)
    assert {row["provider"] for row in timed} == {
        *("fusedmix", "torch", "torchvision", "torch.compile", "copy", "numpy"),
    }
    assert {row["dtype"] for row in timed} == {"float32", "bfloat16", "uint8"}
    assert {row["layout"] for row in timed} == {"contiguous", "channels_last"}
    assert {row["pairing"] for row in timed if row["call"] in ("mix", "mix_")} >= {"roll", "random"}
    compiled = {(row["method"], row["per"]) for row in timed if row["provider"] == "torch.compile"}
    assert compiled == {(method, per) for method in ("MixUp", "CutMix") for per in ("batch", "sample")}
    assert "not measured" not in (out / "dry-run-logs" / "benchmark.log").read_text()
    assert {row["measure"] for row in timed} == {"wall", "host", "first process", "later process"}
    assert all(float(row["copy_ratio"]) > 0 for row in timed if row["measure"] == "wall")
    limits = {row["limit"] for row in rows(out / "dry-run-targets.csv", CHECK)}
    assert {row["call"] for row in timed} >= {"mix_cross_entropy", "mix_binary_cross_entropy", "mix_adjoint"}
    assert limits >= {"1.03", "1.08", "1.1", "1.15", "1.25", "1.8", "2.5", "3", "4", "5", "8"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", ["gpu_suite", "gpu_mix"])
def test_without_a_gpu(module):
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{module}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1
    assert "no GPU" in done.stdout


@pytest.fixture
def suite(tmp_path):
    return suite_of(tmp_path)


def suite_of(folder, out=None, stages=("build",), tests=("tests",), commit="abc"):
    given = argparse.Namespace(dry_run=True, commit=commit, out=out, stages=list(stages), tests=list(tests))
    suite = gpu_suite.Suite(given, folder)
    suite.logs.mkdir(parents=True, exist_ok=True)
    return suite


def test_a_later_run_goes_on_where_the_first_stopped(tmp_path, monkeypatch):
    """Stages of the same commit are added up; those that came to an end are not run again if `left` is asked for."""
    results = {"build": "pass", "tests": "timeout", "triton": "pass", "training": "fail"}
    ran = []

    def run_as(results):
        def stage_of(suite, stage, limit):
            ran.append(stage.name)
            stage.result = results[stage.name]
            if stage.name in ("tests", "triton"):
                suite.tests[stage.name] = results[stage.name]

        for name in results:
            monkeypatch.setattr(gpu_suite.Suite, f"_{name}", stage_of)

    def written(stages, commit="abc"):
        ran.clear()
        suite = suite_of(tmp_path, tmp_path / "out", stages, commit=commit)
        suite.run()
        found, by_name = stages_of(tmp_path / "out")
        return {name: stage["result"] for name, stage in by_name.items()}, found["tests"]

    run_as(results)
    assert written(["training", "build", "tests", "triton"]) == (
        {"build": "pass", "tests": "timeout", "triton": "pass", "training": "fail"},
        {"tests": "timeout", "triton": "pass"},
    )
    assert ran == ["build", "tests", "triton", "training"]  # tests before benchmarks, in whatever order they are given
    run_as(dict.fromkeys(("tests", "training", "kernels", "benchmark", "input"), "pass"))
    monkeypatch.setattr(gpu_suite, "SANITIZER", ())
    monkeypatch.setattr(gpu_suite, "BUDGETS", {k: v for k, v in gpu_suite.BUDGETS.items() if "check" not in k})
    assert written(["left"]) == (
        dict.fromkeys(("build", "kernels", "tests", "triton", "benchmark", "input"), "pass") | {"training": "fail"},
        {"tests": "pass", "triton": "pass"},
    )
    assert ran == ["kernels", "tests", "benchmark", "input"]
    assert written(["left"])[0]["build"] == "pass"
    assert ran == []
    assert written(["training"])[0]["training"] == "pass"  # again, because it is named
    assert written(["tests"], commit="another") == ({"tests": "pass"}, {"tests": "pass"})


def test_what_a_run_did_not_come_to_leaves_the_earlier_result_and_log(tmp_path, monkeypatch):
    def fails(suite, stage, limit):
        suite._command(stage, [sys.executable, "-c", "print('why'); raise SystemExit(1)"], 60)

    monkeypatch.setattr(gpu_suite.Suite, "_build", fails)
    suite_of(tmp_path, tmp_path / "out").run()
    later = suite_of(tmp_path, tmp_path / "out", stages=["build", "tests"])
    later.ends = 0.0
    assert [stage.detail for stage in later.run()] == ["no time was left"] * 2
    later.write(later.run())
    _, stages = stages_of(tmp_path / "out")
    assert {name: stage["result"] for name, stage in stages.items()} == {"build": "fail", "tests": "not run"}
    assert (tmp_path / "out" / "dry-run-logs" / "build.log").read_text().endswith("why\n")


def test_a_run_that_is_killed_has_written_what_came_before(tmp_path, monkeypatch):
    def dies(suite, stage, limit):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_suite.Suite, "_build", lambda suite, stage, limit: setattr(stage, "result", "pass"))
    monkeypatch.setattr(gpu_suite.Suite, "_tests", dies)
    with pytest.raises(KeyboardInterrupt):
        suite_of(tmp_path, tmp_path / "out", stages=["build", "tests"]).run()
    _, stages = stages_of(tmp_path / "out")
    assert {name: stage["result"] for name, stage in stages.items()} == {"build": "pass"}


def test_whole_logs_are_kept(tmp_path):
    suite = suite_of(tmp_path / "work", tmp_path / "out")
    stage = gpu_suite.Stage("kernels")
    for code in ("print('one\\n' * 100)", "print('two'); raise SystemExit(3)"):
        said = suite._command(stage, [sys.executable, "-c", code], 60)
    assert said == "two\n"
    log = (tmp_path / "out" / "dry-run-logs" / "kernels.log").read_text()
    assert log.count("one\n") == 100
    assert log.endswith("two\n")
    assert stage.result == "fail"


FAKE_GPU = """
import torch

torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda *_: (9, 0)
"""


@pytest.mark.thorough
def test_the_tests_of_a_gpu(tmp_path):
    """Every case that takes a GPU, where there is one, is in a file that the suite runs, and none of the others is."""
    (tmp_path / "fake_gpu.py").write_text(FAKE_GPU)
    command = [sys.executable, "-m", "pytest", "-p", "fake_gpu", "tests", "-m", "", "--on-gpu", "--collect-only", "-q"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "FUSEDMIX_CUDA_ARCHS": "90"}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    collected = [line.removeprefix("tests/").split("::", 1) for line in done.stdout.splitlines() if "::" in line]
    files = {file for file, _ in collected}
    # Of these a case has the name of a backend, but no tensor on a GPU: they take fakes, or Triton's interpreter.
    named_alone = ("finish_operators", "gpu_suite", "native_ahead", "pages", "partitions", "safety")
    assert files - {f"test_{name}.py" for name in named_alone} <= set(gpu_suite.TESTS), (
        "gpu_suite runs no other file on a GPU: name it there"
    )
    assert set(gpu_suite.TESTS) <= files
    cases = {case for file, case in collected if file in gpu_suite.TESTS}
    assert {"test_on_a_gpu_as_on_the_cpu", "test_refuses_to_be_captured", "test_monte_carlo_of_triton"} <= {
        case.partition("[")[0] for case in cases
    }
    assert not any("on the CPU" in case or "[reference-cpu" in case or "[cpp" in case for case in cases)


@pytest.mark.parametrize("argument", ["left,tests", "none"])
def test_stages_that_are_none(argument, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--stages", argument])
    with pytest.raises(SystemExit):
        gpu_suite.main()
    assert "--stages must be of build" in capsys.readouterr().err


def test_the_kernels_test_is_built_once(tmp_path, monkeypatch):
    """What lies in the folder of the very same sources and for these GPUs is taken, wherever it was built."""
    kernel_test = gpu_suite.kernel_test
    assert kernel_test.built(tmp_path, shim=True) is None
    target = kernel_test._target(tmp_path, ["90", "120+PTX"], shim=False)
    target.write_text("")
    shim = kernel_test._target(tmp_path, [], shim=True)
    shim.write_text("")
    monkeypatch.setattr(kernel_test, "_run", lambda command: pytest.fail("is built again"))
    assert kernel_test.build(tmp_path, ["90"]) == target
    assert kernel_test.build(tmp_path, shim=True) == kernel_test.built(tmp_path, shim=True) == shim
    monkeypatch.setenv("FUSEDMIX_CUDA_ARCHS", "120")
    assert kernel_test.built(tmp_path) == target
    assert kernel_test.built(tmp_path, ["80"]) is None
    csrc = tmp_path / "csrc"
    shutil.copytree(kernel_test.CSRC, csrc)
    monkeypatch.setattr(kernel_test, "CSRC", csrc)
    assert kernel_test.built(tmp_path) == target
    with monkeypatch.context() as other:
        other.setattr(native, "_NVCC_FLAGS", ("-O1",))
        assert kernel_test.built(tmp_path) is None
    (csrc / "cuda" / "mix.cu").write_text("// another\n")
    assert kernel_test.built(tmp_path) is None


def test_a_kernels_test_that_was_not_linked_to_its_end_is_none(tmp_path, monkeypatch):
    kernel_test = gpu_suite.kernel_test

    def run(command):
        Path(command[command.index("-o") + 1]).write_text("half")
        if "-c" not in command:
            raise KeyboardInterrupt

    monkeypatch.setattr(kernel_test, "_run", run)
    with pytest.raises(KeyboardInterrupt):
        kernel_test.build(tmp_path, shim=True)
    assert kernel_test.built(tmp_path, shim=True) is None


def test_what_is_built_ahead_is_said(tmp_path, monkeypatch):
    """The stages of a GPU compile nothing then."""
    ran = []

    def command(stage, words, limit):
        ran.append(words)
        stage.result = "pass"
        return "7 checks, 0 differ"

    suite = suite_of(tmp_path)
    monkeypatch.setattr(suite, "_command", command)
    monkeypatch.setattr(gpu_suite.native, "why_not", lambda name: None)
    monkeypatch.setattr(gpu_suite.native, "status", lambda name: f"built ahead: {ROOT}/fusedmix/_native/it.so")
    monkeypatch.setenv("FUSEDMIX_CUDA_ARCHS", "90")
    suite.given.dry_run = False
    binary = gpu_suite.kernel_test._target(tmp_path / "kernels", ["90"], shim=False)
    binary.parent.mkdir()
    binary.write_text("")
    build, kernels = gpu_suite.Stage("build"), gpu_suite.Stage("kernels")
    suite._build(build, 60)
    suite._kernels(kernels, 60)
    assert build.detail == "built ahead: fusedmix/_native/it.so"
    assert kernels.detail == "built ahead; 7 checks, 0 differ"
    assert "native.load('cuda')" in ran[0][-1]
    assert ran[1:] == [[str(binary), "--large"]]


@pytest.mark.thorough
def test_the_kernels_test_links_for_a_gpu(tmp_path):
    """It cannot be run here; that it links is what a list of files by hand once missed."""
    reason = native.why_not("cuda") if torch.cuda.is_available() else None
    try:
        native._nvcc()
    except native.BuildError as error:
        reason = str(error)
    if reason is not None:
        assert os.environ.get("CI") is None, reason
        pytest.skip(reason)
    binary = gpu_suite.kernel_test.build(tmp_path, ["90"])
    done = subprocess.run([binary], capture_output=True, text=True)
    assert torch.cuda.is_available() or done.returncode != 0
    assert binary.stat().st_size > 1 << 20


WARNS_AS_BENCHMARK = """
import warnings

class PytestBenchmarkWarning(UserWarning): pass

def pytest_configure(config):
    if config.getoption("dist", "no") != "no":
        warnings.warn(PytestBenchmarkWarning(
            "Benchmarks are automatically disabled because xdist plugin is active."
            "Benchmarks cannot be performed reliably in a parallelized environment."))
"""


@pytest.mark.parametrize("ours", [True, False])
def test_pytest_benchmark_beside_xdist(tmp_path, ours):
    """It warns, up to its version 5.2 when it is configured, and a warning that is an error ends the run."""
    pytest.importorskip("xdist")
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    filters = configured["filterwarnings"] if ours else ["error"]
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings =\n    " + "\n    ".join(filters) + "\n")
    (tmp_path / "warns.py").write_text(WARNS_AS_BENCHMARK)
    (tmp_path / "test_it.py").write_text("def test_passes(): pass\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-p", "warns", "-n", "2", "-q"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    print(done.stdout, done.stderr)
    assert (done.returncode == 0) == ours


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_a_stage_that_is_interrupted_leaves_its_report(suite, tmp_path):
    stage = gpu_suite.Stage("tests")
    (tmp_path / "test_slow.py").write_text("import time\n\ndef test_a(): pass\n\ndef test_b(): time.sleep(600)\n")
    suite.given.tests = [str(tmp_path / "test_slow.py")]
    for limit in (15, 90):  # on a busy machine pytest takes its time to start
        suite._pytest(stage, limit, "test")
        if "tests" in suite.tests:
            break
    assert stage.result == "timeout"
    assert suite.tests["tests"]["counts"]["passed"] in (1, 2)  # pytest reports what was interrupted as passed
    assert stage.detail.endswith("unfinished")


@pytest.mark.thorough
@pytest.mark.parametrize("report", [None, "<testsuites><testsuite"], ids=["missing", "cut off"])
def test_without_a_report_what_failed_is_still_known(suite, tmp_path, monkeypatch, report):
    """Of processes that did not end when they were asked to. What an earlier run left is none of it."""
    stage, left = gpu_suite.Stage("tests"), suite.folder / "tests.xml"
    (tmp_path / "test_some.py").write_text(TESTS)
    suite.given.tests = [str(tmp_path / "test_some.py")]
    left.write_text("<testsuites/>")

    def command(*args):
        gpu_suite.Suite._command(suite, *args)
        left.unlink()
        if report is not None:
            left.write_text(report)

    monkeypatch.setattr(suite, "_command", command)
    suite._pytest(stage, 120, "not triton")
    assert suite.tests["tests"]["counts"] == {}
    assert [name.rpartition("::")[2] for name in suite.tests["tests"]["failed"]] == ["test_fails"]
    assert stage.detail.startswith("1 failed of those that ended")


def test_without_nvcc_the_stages_of_cuda_say_so(suite, monkeypatch):
    monkeypatch.setattr(gpu_suite.native, "why_not", lambda name: f"no compiler for {name}")
    suite.given.dry_run = False
    for run in (suite._build, suite._kernels):
        stage = gpu_suite.Stage("build")
        run(stage, 60)
        assert (stage.result, stage.detail) == ("not run", "no compiler for cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["benchmark", "input", "training"])
def test_what_is_asked_of_a_benchmark_on_a_gpu_is_understood(suite, monkeypatch, name):
    """Its command as far as the question for a GPU, which is what a dry run asks otherwise."""
    if name == "training":
        pytest.importorskip("timm")
    asked = []

    def command(stage, words, limit):
        asked.append(words)
        stage.result = "pass"
        return ""

    monkeypatch.setattr(suite, "_command", command)
    suite.given.dry_run = False
    getattr(suite, f"_{name}")(gpu_suite.Stage(name), 200)
    (words,) = asked
    assert not {"--dry-run", "--quick"} & set(words)
    monkeypatch.setattr(sys, "argv", words[2:])
    assert importlib.import_module(words[2]).main() == 2


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
