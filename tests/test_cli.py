"""The command line."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fusedmix as fm
from fusedmix import backends, bench, cli, demo


def test_info_names_versions_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("fusedmix", "python", "torch", "torchvision", "triton", "GPU", "c++", "nvcc", "ninja"):
        assert any(line.startswith(word) for line in out.splitlines()), word
    head, *lines = out.partition("\n\n")[2].splitlines()
    assert head.split() == ["backend", "device", "works", "chosen", "reason"]
    rows = {tuple(line.split()[:4]) for line in lines}
    for line in backends.report():
        words = ("yes" if line.works else "no", "yes" if line.chosen else "no")
        assert (line.name, line.device, *words) in rows


def test_info_wraps_long_reasons() -> None:
    from fusedmix.info import table

    lines = table(("name", "reason"), [("cpp", "the compiler said " * 20)], width=60).splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert len(lines) > 6
    assert all(line.startswith("      ") for line in lines[2:])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bake"], "invalid choice"),
        (["demo", "--epochs", "0"], "must be at least 1"),
        (["demo", "--epochs", "many"], "invalid int value"),
        (["demo", "--seed", "-1"], "must lie in"),
        (["demo", "--out", __file__], "cannot use"),
        (["bench", "--quick", "--out", __file__], "cannot use"),
    ],
)
def test_bad_arguments_are_usage_errors(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that exists and takes no file")
@pytest.mark.parametrize("command", ["demo", "bench"])
def test_an_unwritable_folder_is_found_before_the_work(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("has begun")

    monkeypatch.setattr(demo, "run", work)
    monkeypatch.setattr(bench, "run", work)
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--out", "/proc"])
    assert stop.value.code == 2
    assert "argument --out: cannot use /proc as a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "word"),
    [
        (["--help"], 0, "contact sheet"),
        ([], 0, "contact sheet"),
        (["--version"], 0, f"fusedmix {fm.__version__}"),
        (["demo", "--help"], 0, "--epochs"),
        (["bench", "--help"], 0, "--quick"),
        (["bench", "--rounds", "none"], 2, "invalid int value"),
    ],
)
def test_help_comes_without_importing_torch(argv: list[str], code: int, word: str) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['fusedmix', *{argv!r}]\n"
        "try: runpy.run_module('fusedmix', run_name='__main__')\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{code} False"
    assert word in done.stdout + done.stderr
    assert "default: None" not in done.stdout
    assert "default: False" not in done.stdout


def test_a_pipe_that_nobody_reads_ends_quietly() -> None:
    """`fusedmix info | head -n 1`."""
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "fusedmix", "info"], stdout=writing, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writing)
        os.close(reading)
        _, err = process.communicate()
    assert err == ""
    assert process.returncode == 141


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_info", interrupt)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "\nfusedmix: interrupted\n"


def test_an_ascii_terminal_gets_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def say() -> int:
        print("λ ≥ 3 µs × ☃")
        return 0

    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(cli, "_info", say)
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["info"]) == 0
    assert out.buffer.getvalue().decode() == "lambda >= 3 us x ?\n"  # type: ignore[attr-defined]


def test_info_says_that_a_backend_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSEDMIX_BACKEND", "fast")
    assert cli.main(["info"]) == 0
    assert "FUSEDMIX_BACKEND=fast is none of" in " ".join(capsys.readouterr().out.split())


def test_missing_packages_give_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("skimage", "tqdm"):
        monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["demo", "--out", str(tmp_path / "sheet")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "scikit-image, tqdm" in err
    assert 'pip install "fusedmix[demo]"' in err
    assert not (tmp_path / "sheet").exists()


def test_a_backend_that_cannot_run_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> str:
        raise backends.BackendError("The backend 'cuda' cannot run on 'cpu' tensors.")

    monkeypatch.setattr(backends, "choose", refuse)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "fusedmix demo: The backend 'cuda' cannot run on 'cpu' tensors.\n"


def test_command_line_imports_no_demo_package() -> None:
    code = (
        "import sys, fusedmix.cli, fusedmix.info, fusedmix.demo;"
        "print(sorted({'matplotlib', 'skimage', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
