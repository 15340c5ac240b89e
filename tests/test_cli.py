"""The command line and the demo behind it."""

from __future__ import annotations

import csv
import io
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_an_interrupted_training_leaves_the_contact_sheet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("matplotlib", "skimage", "sklearn"):
        pytest.importorskip(package)
    from fusedmix.demo import train

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "compare", interrupt)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 130
    assert f"Written before the interruption:\n  {tmp_path / 'methods.png'}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["methods.png"]


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


def test_demo_writes_the_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("matplotlib.image")
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    from fusedmix.demo.methods import METHODS
    from fusedmix.demo.sheet import sheet_size

    assert cli.main(["demo", "--skip-training", "--seed", "3", "--out", str(tmp_path / "new" / "folder")]) == 0
    [path] = (tmp_path / "new" / "folder").iterdir()
    out = capsys.readouterr().out
    assert str(path) in out
    assert all(method.name in out for method in METHODS)
    assert image.imread(path).shape[1::-1] == sheet_size(6, len(METHODS))
    assert path.stat().st_size < 4_000_000


def test_photos_are_colour_batches() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    from fusedmix.demo.photos import load_photos

    images, names = load_photos(32)
    assert images.shape == (6, 3, 32, 32)
    assert len(set(names)) == 6
    assert images.min() >= 0
    assert images.max() <= 1 + 1e-6
    assert (images.amax((2, 3)) - images.amin((2, 3)) > 0.3).all()


def test_ece_by_hand() -> None:
    pytest.importorskip("sklearn")
    from fusedmix.demo.train import expected_calibration_error

    # Five bins. (0.6, 0.8]: confidences .7 and .8, one right: 2 * |.5 - .75| = .5.
    # (0.8, 1]: 1.0 and .9, both right: 2 * |1 - .95| = .1. (0.4, 0.6]: .6, wrong: |0 - .6| = .6.
    confidence = torch.tensor([0.7, 0.8, 1.0, 0.9, 0.6], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 0, 1])
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    assert expected_calibration_error(probabilities, labels, bins=5) == pytest.approx((0.5 + 0.1 + 0.6) / 5)
    assert expected_calibration_error(probabilities[2:3], labels[2:3]) == 0
    assert expected_calibration_error(torch.zeros(1, 2), torch.tensor([0])) == 1


def test_training_runs_with_every_method(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    pytest.importorskip("tqdm")
    from fusedmix.demo import results, train
    from fusedmix.demo.methods import METHODS

    runs = train.compare(range(1), epochs=1)
    names = [train.NO_MIXING, *(method.name for method in METHODS)]
    assert [(run.method, run.corrupted) for run in runs] == [(n, c) for c in train.CORRUPTED for n in names]
    for run in runs:
        assert 0.05 < run.accuracy <= 1
        assert 0 <= run.ece <= 1
        assert math.isfinite(run.seconds)

    rows = results.summarise(runs)
    assert [row.accuracy_percent for row in rows] == [100 * run.accuracy for run in runs]
    lines = results.as_text(rows).splitlines()
    assert len(lines) == 2 + len(names)
    assert "±" in results.caveat(rows)
    results.write_csv(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        assert [line["method"] for line in csv.DictReader(file)] == [row.method for row in rows]
    results.draw(runs, tmp_path / "runs.png")
    assert (tmp_path / "runs.png").stat().st_size > 0


def test_training_repeats_and_corrupts_only_training_labels() -> None:
    pytest.importorskip("sklearn")
    from fusedmix.demo import train
    from fusedmix.demo.methods import METHODS

    clean, corrupted = train.load_split(5), train.load_split(5, 0.3)
    assert len(clean.test_labels) == train.TEST_IMAGES
    assert torch.equal(clean.test_labels, corrupted.test_labels)
    assert torch.equal(clean.train_images, corrupted.train_images)
    changed = (clean.train_labels != corrupted.train_labels).double().mean()
    assert 0.2 < changed <= 0.3

    states = [train.train(METHODS[1], clean, seed=5, epochs=1).state_dict() for _ in range(2)]
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-5), name


def test_demo_needs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in demo._PACKAGES:
        monkeypatch.setitem(sys.modules, module, None)
    assert demo.missing_packages() == ["matplotlib", "scikit-image", "scikit-learn", "tqdm"]
