"""The benchmarks run, on tiny batches, and write what they say they write. Their figures are not looked at."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedmix as fm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is no part of what is installed

from benchmarks import gpu_batch, gpu_first, gpu_targets, tables  # noqa: E402
from fusedmix.bench import device, environment, results, timing  # noqa: E402

ENVIRONMENT = {"device", "driver", "torch", "cuda", "triton", "commit", "date"}
TIMING = {"measure", "provider", "call", "method", "backend", "pairing", "per", "inplace", "dtype", "shape", "share"}
SUMMARY = {"bytes", "median_us", "p20_us", "p80_us", "least_us", "repeats", "copy_ratio", "layout", "kernels"}
CHECK = {"what", "value", "limit", "unit", "at_least", "met"}


def run(module, *arguments, **environment):
    """The output of a benchmark in a process of its own, by the reference backend unless told otherwise."""
    env = {**os.environ, "FUSEDMIX_BACKEND": "reference", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(path, columns):
    with path.open() as file:
        found = list(csv.DictReader(file))
    assert found
    assert set(found[0]) == columns | ENVIRONMENT
    assert all(row["device"] and row["torch"] == torch.__version__ and row["commit"] == "abc" for row in found)
    return found


# ---- helpers ----


def test_everything_is_measured_once_a_round():
    said, finished = [], []

    def measure(key):
        def start():
            said.append(key)
            return lambda: float(len(finished))

        return start

    times = timing.interleave({key: measure(key) for key in "abc"}, 5, lambda: finished.append(len(said)))
    assert finished == [3, 6, 9, 12, 15]
    assert all(sorted(said[i : i + 3]) == list("abc") for i in range(0, 15, 3))
    assert len({tuple(said[i : i + 3]) for i in range(0, 15, 3)}) > 1  # not always in the same order
    assert times == {key: [1.0, 2.0, 3.0, 4.0, 5.0] for key in "abc"}  # read when the round was over


def test_summary_of_times():
    row = timing.Timing("wall", "torch", "copy")
    row.record([float(x) for x in range(10, 0, -1)])
    assert (row.median_us, row.p20_us, row.p80_us, row.least_us, row.repeats) == (5.5, 3.0, 9.0, 1.0, 10)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100-sxm4"), ("NVIDIA GeForce RTX 4090", "rtx-4090")],
)
def test_files_are_named_after_the_device(name, expected):
    assert environment.slug(name) == expected


def test_checks():
    assert results.Check("a", 1.0, 1.0, "x").met
    assert not results.Check("a", 1.01, 1.0, "x").met
    assert results.Check("a", 2.0, 1.8, "x", at_least=True).met
    assert not results.Check("a", 1.7, 1.8, "x", at_least=True).met
    table = results.targets_table([results.Check("a", 1.0, 1.0, "x"), results.Check("b", 2.0, 1.0, "x")])
    assert table.count("FAIL") == 1
    assert table.endswith("1 of 2 targets met")


def test_environment():
    found = environment.environment(torch.device("cpu"), "abc")
    assert set(found) >= ENVIRONMENT
    assert found["commit"] == "abc"
    assert found["fusedmix"] == fm.__version__
    assert json.loads(json.dumps(found)) == found


def fused_rows(backend, fused_us):
    """Rows of one shape, where a copy takes 100 µs."""
    common_fields = {"method": "MixUp", "pairing": "roll", "per": "batch", "backend": backend}
    box = {"pairing": "flip", "per": "sample", "backend": backend}
    fused = [
        timing.Timing("device", "fusedmix", "mix_", inplace=True, **common_fields),
        timing.Timing("device", "fusedmix", "mix", **common_fields),
        timing.Timing("device", "fusedmix", "module", inplace=True, **common_fields),
        timing.Timing("device", "fusedmix", "mix_", "CutMix", inplace=True, share=0.5, **box),
    ]
    for row in fused:
        row.dtype = "float32"
    for row, us in zip(fused, fused_us, strict=True):
        row.median_us, row.copy_ratio = us, us / (100.0 * row.share)
    return fused


def peer_rows():
    """Rows of the same shape: torchvision at 450 µs, torch.compile at 100 and 210."""
    common_fields = {"method": "MixUp", "pairing": "roll", "per": "batch"}
    peers = [
        timing.Timing("device", "torchvision", "module", **common_fields),
        timing.Timing("device", "torch.compile", "mix", **common_fields),
        timing.Timing("device", "torch.compile", "mix_", inplace=True, **common_fields),
    ]
    for row, us in zip(peers, (450.0, 100.0, 210.0), strict=True):
        row.median_us = us
    return peers


@pytest.mark.parametrize(
    ("fused_us", "missed"),
    [
        ((109.0, 102.0, 112.0, 89.0), []),
        ((111.0, 102.0, 112.0, 89.0), ["in place"]),
        ((120.0, 102.0, 112.0, 89.0), ["in place", "faster than torch.compile"]),
        ((109.0, 104.0, 112.0, 89.0), ["out of place", "beside torch.compile"]),
        ((109.0, 102.0, 113.0, 89.0), ["faster than torchvision"]),
        ((109.0, 102.0, 112.0, 91.0), ["in place, 50% of the batch"]),
    ],
)
def test_targets_of_a_gpu(fused_us, missed):
    checks = gpu_targets.targets([*fused_rows("cuda", fused_us), *peer_rows()], large=True)
    assert len(checks) == 6
    said = [check.what for check in checks if not check.met]
    assert len(said) == len(missed)
    assert all(what.endswith(end) for what, end in zip(said, missed, strict=True))


@pytest.mark.parametrize(
    ("triton_us", "missed"),
    [
        ((114.0, 900.0, 112.0, 57.0), []),
        ((116.0, 900.0, 112.0, 57.0), ["MixUp roll, per batch, float32 , in place"]),
        ((114.0, 900.0, 113.0, 58.0), ["faster than torchvision", "CutMix flip, per sample, float32 , in place"]),
    ],
)
def test_targets_of_triton_beside_cuda(triton_us, missed):
    rows = [*fused_rows("triton", triton_us), *fused_rows("cuda", (100.0, 102.0, 112.0, 50.0)), *peer_rows()]
    checks = [check for check in gpu_targets.targets(rows, large=True) if check.what.startswith("triton: ")]
    assert len(checks) == 3
    said = [check.what for check in checks if not check.met]
    assert len(said) == len(missed)
    assert all(what.endswith(end) for what, end in zip(said, missed, strict=True))
    assert all(check.met for check in gpu_targets.targets(rows, large=True) if not check.what.startswith("triton: "))


def test_targets_of_triton_where_there_is_no_cuda():
    checks = gpu_targets.targets([*fused_rows("triton", (114.0, 900.0, 112.0, 57.0)), *peer_rows()], large=True)
    assert [check.what.rpartition(", ")[2] for check in checks] == ["faster than torchvision"]


def test_targets_on_the_host():
    rows = [timing.Timing("host", "fusedmix", call, "CutMix", "triton") for call in ("mix_", "module, x", "mix_labels")]
    rows.append(timing.Timing("host", "fusedmix", "mix_", "CutMix", "cuda"))
    for row, median in zip(rows, (39.0, 41.0, 99.0, 99.0), strict=True):
        row.record([1.0, median, 600.0])
    assert [(check.value, check.met) for check in gpu_targets.host_targets(rows)] == [(39.0, True), (41.0, False)]


def test_what_fails_is_noted_and_the_rest_is_measured():
    batch = gpu_batch.Batch((2, 3, 4, 4), torch.float32, torch.device("cpu"), 10, ["reference"])

    def broken(*_):
        raise RuntimeError("no such kernel\nand much more")

    def entry(backend, call, check=None):
        return gpu_batch.Entry(batch.row("mix_", "MixUp", backend=backend), call, check)

    works = lambda k: batch.clones.x[k].neg_()  # noqa: E731
    entries = [entry("a", broken), entry("b", works, broken), entry("c", works)]
    assert [row.backend for row in batch.measure(entries, 1) if row.call != "copy"] == ["c"]
    assert batch.failed == [f"{name}: mix_ MixUp, float32 2x3x4x4: RuntimeError: no such kernel" for name in "ab"]


def test_a_copy_that_copies_something_else_is_left_out(monkeypatch):
    monkeypatch.setattr(
        gpu_batch.copies, "copies", lambda device: {"neg": torch.Tensor.copy_, "copy_": torch.Tensor.copy_}
    )
    batch = gpu_batch.Batch((2, 3, 4, 4), torch.float32, torch.device("cpu"), 10, ["reference"])
    assert [row.method for row in batch.measure([], 1)] == ["copy_"]
    assert len(batch.failed) == 1
    assert batch.failed[0].startswith("torch: copy neg, float32 2x3x4x4: AssertionError")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_everything_on_a_batch_is_compared(dtype, channels_last, monkeypatch):
    """Every entry has a check, which passes with the reference, and compares something."""
    pytest.importorskip("torchvision")

    def differs(*_, **__):
        raise ArithmeticError

    batch = gpu_batch.Batch((4, 3, 6, 8), dtype, torch.device("cpu"), 10, ["reference"], channels_last)
    groups = [batch.plans(labels=True), batch.out_of_place(), batch.copies({0.5, 1.0})]
    if dtype.is_floating_point:
        groups += [batch.adjoints(), batch.steps(), batch.modules(), batch.fmix(), batch.torchvision()]
    for entries in groups:
        for entry in entries:
            assert entry.check is not None, entry.row
            entry.check()
            with monkeypatch.context() as differing:
                differing.setattr(torch.testing, "assert_close", differs)
                with pytest.raises(ArithmeticError):
                    entry.check()
    assert not batch.failed


def test_rows_for_which_there_is_no_time_are_said():
    batch = gpu_batch.Batch((2, 3, 4, 4), torch.float32, torch.device("cpu"), 10, ["reference"])
    entries = list(batch.plans(methods=("MixUp",), pairings=("roll",)))
    assert batch.measure(entries, 1, deadline=0.0) == []
    count = len(entries) + len(list(batch.copies({1.0})))
    assert len(batch.failed) == 1
    assert f"no time was left for {count} rows, from torch: copy copy_ on" in batch.failed[0]


def test_kernels_are_told_apart_by_what_marks_each_call():
    names = ["spin", "a", "b", "spin", "spin", "a"]
    assert device.split(names, 3) == [["a", "b"], [], ["a"]]
    for seen, count in ((names, 2), (names[1:], 3), ([], 1)):
        with pytest.raises(RuntimeError, match=f"each of {count} calls"):
            device.split(seen, count)
    assert device.split([], 0) == []


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void fusedmix::cuda::mix_kernel<float, 4>(fusedmix::Args)", "fusedmix::cuda::mix_kernel"),
        ("void at::native::(anonymous namespace)::spin_kernel(long)", "at::native::spin_kernel"),
        ("mix_kernel", "mix_kernel"),
        ("Memcpy HtoD (Pageable -> Device)", "Memcpy HtoD"),
    ],
    ids=("template", "anonymous", "plain", "copy"),
)
def test_names_of_kernels(signature, name):
    assert device.kernel_name(signature) == name


@pytest.mark.thorough
def test_a_backend_that_does_not_start():
    rows, broken = gpu_first.measure(("reference", "cuda"), torch.device("cpu"), (2, 3, 4, 4))
    assert {row.backend for row in rows} == {"reference"}
    assert len(rows) == 8
    assert all(row.median_us > 0 for row in rows)
    assert set(broken) == {"cuda"}
    assert "does not serve 'cpu' tensors" in broken["cuda"]


# ---- scripts ----


@pytest.mark.thorough
def test_cpu_mix(tmp_path):
    pytest.importorskip("torchvision")
    said = run("cpu_mix", "--quick", "--threads", 1, "--commit", "abc", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"cpu-mix.csv", "cpu-targets.csv", "cpu-environment.json"}
    timed = rows(tmp_path / "cpu-mix.csv", TIMING | SUMMARY)
    assert {row["provider"] for row in timed} == {"fusedmix", "torch", "torchvision"}
    assert {row["call"] for row in timed} == {"copy", "clone", "mix_", "mix", "module"}
    assert {row["method"] for row in timed if row["call"] == "mix_"} == {"MixUp", "HMix", "GMix", "CutMix"}
    assert all(float(row["median_us"]) > 0 for row in timed)
    checks = rows(tmp_path / "cpu-targets.csv", CHECK)
    assert f"of {len(checks)} targets met" in said
    environment = json.loads((tmp_path / "cpu-environment.json").read_text())
    assert set(environment["import"]) == {"torch_s", "added_by_fusedmix_s"}


@pytest.mark.thorough
def test_cpu_pixel_loss(tmp_path):
    said = run("cpu_pixel_loss", "--quick", "--threads", 1, "--commit", "abc", "--out", tmp_path)
    names = {f"cpu-pixel-loss{kind}" for kind in (".csv", "-targets.csv", "-environment.json")}
    assert {path.name for path in tmp_path.iterdir()} == names
    timed = rows(tmp_path / "cpu-pixel-loss.csv", TIMING | SUMMARY)
    assert [row["provider"] for row in timed] == ["fusedmix", "torch", "torch on targets of mix_masks"] * 2
    assert f"of {len(rows(tmp_path / 'cpu-pixel-loss-targets.csv', CHECK))} targets met" in said


@pytest.mark.thorough
def test_triton_host():
    pytest.importorskip("triton")
    said = run("triton_host", "--quick", TRITON_INTERPRET="0")
    launches = [line.split("|")[3].strip() for line in said.splitlines() if " place " in line]
    assert launches == ["2"] * 4 + ["3"] * 8


@pytest.mark.thorough
def test_cpu_bench(tmp_path):
    for package in ("torchvision", "timm", "kornia"):
        pytest.importorskip(package)
    said = run("cpu_bench", "--quick", "--threads", 1, "--commit", "abc", "--out", tmp_path)
    names = {"cpu-bench.csv", "cpu-bench-environment.json", "cpu-bench.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert "| CutMix, per sample, 4x3x16x16" in said


@pytest.mark.thorough
def test_theory(tmp_path):
    pytest.importorskip("skimage")
    run("theory", "--quick", "--commit", "abc", "--out", tmp_path)
    drawn = ("coefficients", "moons", "designs", "unbounded")
    names = {f"theory-{name}.csv" for name in ("examples", *drawn)}
    pictures = {"theory-examples.jpg", *(f"theory-{name}.png" for name in drawn)}
    assert {path.name for path in tmp_path.iterdir()} == names | pictures


def test_folders_of_classes(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    pytest.importorskip("sklearn")
    from benchmarks.accuracy import load_folder

    for part, count in (("train", 5), ("val", 2)):
        for number, name in enumerate(("cats", "dogs")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                image.new("RGB", (12, 9), (100 * number, 10 * i, 0)).save(tmp_path / part / name / f"{i}.png")
    split = load_folder(tmp_path, 8, seed=0, corrupted=0.0, device="cpu")
    assert split.classes == 2
    parts = {"train": 8, "validation": 2, "test": 4}
    for part, count in parts.items():
        images, labels = getattr(split, f"{part}_images"), getattr(split, f"{part}_labels")
        assert images.shape == (count, 3, 8, 8)
        torch.testing.assert_close(images[:, 0].amax((1, 2)), labels * 100 / 255)
    assert len(torch.cat([split.train_images, split.validation_images]).unique(dim=0)) == 10
    wrong = load_folder(tmp_path, 8, seed=0, corrupted=1.0, device="cpu")
    assert torch.equal(wrong.test_labels, split.test_labels)
    assert torch.equal(wrong.validation_labels, split.validation_labels)
    assert not torch.equal(wrong.train_labels, split.train_labels)
    alone = load_folder(tmp_path / "train", 8, seed=1, corrupted=0.0, device="cpu")
    assert [len(x) for x in (alone.train_images, alone.validation_images, alone.test_images)] == [6, 2, 2]


@pytest.mark.thorough
def test_accuracy(tmp_path):
    pytest.importorskip("sklearn")
    said = run("accuracy", "--quick", "--commit", "abc", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"accuracy.csv", "accuracy.png"}
    assert "| no mixing" in said
    assert said.count("seconds an epoch") == 2
    with (tmp_path / "accuracy.csv").open() as file:
        assert {"MixUp", "SpectralMix"} <= {row["method"] for row in csv.DictReader(file)}


@pytest.mark.thorough
def test_fallback(tmp_path):
    said = run("fallback", "--quick", "--threads", 1, "--commit", "abc", "--out", tmp_path)
    assert "4 targets met" in said
    with (tmp_path / "cpu-fallback.csv").open() as file:
        found = list(csv.DictReader(file))
    assert {row["provider"] for row in found} == {"torchvision", "fusedmix"}
    assert all(row["backend"] == "reference" for row in found if row["provider"] == "fusedmix")


def test_cpu_fmix(tmp_path):
    from fusedmix.backends import native

    if native.why_not("cpp") is not None:
        pytest.skip(str(native.why_not("cpp")))
    said = run("cpu_fmix", "--quick", "--commit", "abc", "--out", tmp_path, FUSEDMIX_BACKEND="cpp")
    assert {path.name for path in tmp_path.iterdir()} == {"cpu-fmix.csv", "cpu-fmix-targets.csv"}
    timed = rows(tmp_path / "cpu-fmix.csv", TIMING | SUMMARY)
    assert {(row["provider"], row["call"]) for row in timed} == {
        ("fusedmix", "mask"),
        ("numpy", "mask"),
        ("fusedmix", "module"),
    }
    assert all(float(row["median_us"]) > 0 for row in timed)
    assert f"of {len(rows(tmp_path / 'cpu-fmix-targets.csv', CHECK))} targets met" in said


@pytest.mark.thorough
def test_cpu_loss(tmp_path):
    said = run("cpu_loss", "--quick", "--threads", 1, "--commit", "abc", "--out", tmp_path)
    names = {"cpu-loss.csv", "cpu-loss-targets.csv", "cpu-loss-environment.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    timed = rows(tmp_path / "cpu-loss.csv", TIMING | SUMMARY)
    assert {row["provider"] for row in timed} == {"fusedmix", "torch"}
    assert {row["call"] for row in timed} == {"mix_cross_entropy", "mix_binary_cross_entropy"}
    checks = rows(tmp_path / "cpu-loss-targets.csv", CHECK)
    assert f"of {len(checks)} targets met" in said


STEP = {"model", "mixer", "threads", "mixing_share", "share_p20", "share_p80"}


def first_cells(table):
    return [line.split("|")[1].strip() for line in table.splitlines() if line[:1] == "|"]


@pytest.mark.thorough
def test_train_step(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    said = run("train_step", "--quick", "--threads", 1, "--commit", "abc", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"cpu-train-step.csv", "cpu-train-step-environment.json"}
    timed = rows(tmp_path / "cpu-train-step.csv", TIMING | SUMMARY | STEP)
    assert {row["provider"] for row in timed} == {"torch", "torchvision", "timm", "fusedmix"}
    mixed = {row["mixer"] for row in timed if row["call"] == "mixing"}
    assert {row["mixer"] for row in timed if row["call"] == "step"} == mixed | {"none"}
    assert len(mixed) == 12
    for row in timed:
        assert float(row["median_us"]) > 0
        # A share, negative or not, is below 1; what does not mix has none.
        assert (float(row["mixing_share"]) < 1) == (row["call"] == "step" and row["mixer"] != "none")
    assert "ResNet-50, ViT-S and CUDA graphs need a GPU" in said
    assert set(first_cells(said)[2:]) == mixed | {"none"}
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert first_cells(tables.cpu_train_step()) == first_cells(said)


@pytest.mark.thorough
def test_train_step_as_on_a_gpu(tmp_path):
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    options = ("--dry-run", "--models", "resnet20", "--threads", 1, "--commit", "abc", "--out", tmp_path)
    run("train_step", "--device", "cuda", *options)
    timed = rows(tmp_path / "dry-run-train-step.csv", TIMING | SUMMARY | STEP)
    captured = {row["mixer"]: row for row in timed if row["call"] == "graph step"}
    assert len(captured) == 3
    assert {row["provider"] for row in captured.values()} == {
        "torch",
        "fusedmix",
    }  # what draws on the host would freeze
    assert all((float(row["mixing_share"]) < 1) == (name != "none") for name, row in captured.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", ["train_step", "data_loader", "input_step"])
def test_without_a_gpu(module, monkeypatch, capsys):
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    monkeypatch.setattr(sys, "argv", [module, "--device", "cuda"])
    assert importlib.import_module(f"benchmarks.{module}").main() == 2
    assert capsys.readouterr().out.startswith(f"{module}: torch finds no GPU")


def test_mixers_that_differ_are_not_timed():
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    from dataclasses import replace

    from benchmarks import train_mixers

    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    found = {mixer.name: mixer for mixer in train_mixers.mixers(4, torch.eye(4))}

    def loss(mixer, images):
        mixed, targets = mixer.mix(images, y)
        return float(mixed.square().mean() + targets.square().mean())

    twins = [mixer for mixer in found.values() if mixer.twin]
    assert [mixer.twin.partition(" ")[0] for mixer in twins] == ["torchvision"] * 3 + ["timm"] * 2
    for mixer in twins:
        assert train_mixers.disagreement(mixer, found[mixer.twin], x, y, loss) is None
    ours, theirs = found["fusedmix MixUp"], found["torchvision MixUp"]
    for other, what in (
        (found["fusedmix CutMix"], "images of"),
        (replace(ours, mix=lambda x, y: (ours.mix(x, y)[0], torch.eye(4))), "targets of"),
    ):
        assert train_mixers.disagreement(other, theirs, x, y, loss).startswith(what)
    # A loss that is off by a thousandth.
    off = {ours: 1.001, theirs: 1.0}
    said = train_mixers.disagreement(ours, theirs, x, y, lambda mixer, images: off[mixer] * loss(mixer, images))
    assert said.startswith("the losses of")


LOADER = {"how", "where", "workers", "batch", "samples_per_s"}


@pytest.mark.thorough
def test_data_loader(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    said = run("data_loader", "--quick", "--threads", 1, "--commit", "abc", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"cpu-data-loader.csv", "cpu-data-loader-environment.json"}
    timed = rows(tmp_path / "cpu-data-loader.csv", TIMING | SUMMARY | LOADER)
    assert {(row["where"], row["workers"]) for row in timed} == {
        (w, n) for w in ("", "collate", "device") for n in "02"
    }
    assert all(float(row["samples_per_s"]) == pytest.approx(1e6 / float(row["median_us"]), rel=1e-4) for row in timed)
    assert {row["provider"] for row in timed} == {"torch", "torchvision", "timm", "fusedmix"}
    assert set(first_cells(said)[2:]) == {row["how"] for row in timed}
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert first_cells(tables.cpu_data_loader()) == first_cells(said)


def test_shares_of_a_step():
    from benchmarks.train_rows import StepTiming, step_table

    step, alone = (StepTiming("wall", "fusedmix", call, "MixUp", mixer="ours") for call in ("step", "mixing"))
    step.record([10_000.0, 20_000.0, 40_000.0])
    step.record_share([10_000.0, 20_000.0, 40_000.0], [9_000.0, 19_000.0, 39_000.0])
    alone.record([1_000.0] * 3)
    assert (step.share_p20, step.mixing_share, step.share_p80) == pytest.approx((0.025, 0.05, 0.1))
    line = step_table([vars(step), vars(alone)]).splitlines()[-1]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "ours",
        "20.0 (10.0 to 40.0) (busy)",  # p80 is four times p20
        "5.0% (2.5% to 10.0%)",
        "1.00 (1.00 to 1.00)",
        "5.0%",
    ]


@pytest.mark.thorough
def test_regression_under_pytest_benchmark():
    pytest.importorskip("pytest_benchmark")
    from fusedmix.backends import native

    if native.why_not("cpp") is not None:
        pytest.skip(str(native.why_not("cpp")))
    native.load("cpp")  # built once, also where other tests run at the same time
    command = [sys.executable, "-m", "pytest", "benchmarks/test_regression.py", "--benchmark-disable", "-q", "-n", "0"]
    done = subprocess.run([*command, "-k", "small"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout


@pytest.mark.thorough
def test_first_use(tmp_path):
    # The libraries that other tests built: how long building takes is not the question here.
    from fusedmix.backends import native

    if native.why_not("cpp") is not None:
        pytest.skip(str(native.why_not("cpp")))
    run(
        "first_use", "--quick", "--device", "cpu", "--cache", native._cache_root(), "--commit", "abc", "--out", tmp_path
    )
    found = json.loads((tmp_path / "cpu-first-use.json").read_text())
    assert set(found) == {"first_process", "second_process", "import", "environment"}
    for process in (found["first_process"], found["second_process"]):
        steps = ["started", "torch imported", "fusedmix imported", "backends ready", "first batch"]
        seconds = [process[f"{step}_s"] for step in steps]
        assert seconds == sorted(seconds)
        assert set(process["loading_s"]) == {"cpp"}
