"""`fusedmix bench`: who is measured, that all are shown to do the same, and what comes out. Times are not looked at."""

from __future__ import annotations

import csv
import dataclasses
import math
import re

import numpy as np
import pytest
import torch

import fusedmix as fm
from fusedmix import bench, cli
from fusedmix.bench import cases, contenders, device, plain, report, sweep
from fusedmix.bench.cases import Case

CPU = torch.device("cpu")
EAGER = [peer for peer in cases.PEERS if peer != "torch.compile"]
SMALL = {"size": 16, "batch": 6, "classes": 5}


def batch(case, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(case.shape, generator=generator) * 200
    return x.to(case.torch_dtype), torch.randint(case.classes, (case.batch,), generator=generator)


@pytest.fixture(scope="module", autouse=True)
def peers():
    for package in ("torchvision", "timm", "kornia"):
        pytest.importorskip(package)


# ---- contenders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("per", cases.PERS)
@pytest.mark.parametrize("method", cases.METHODS)
def test_everybody_does_the_same(method, per, dtype):
    case = Case(method, per, dtype=dtype, **SMALL)
    found = list(contenders.contenders(case, CPU, ["cpp", "reference"] if fm_has_cpp() else ["reference"], EAGER))
    for contender in found:
        contender.check(*batch(case))
    providers = {contender.provider for contender in found}
    expected = {"fusedmix"}
    if method in ("MixUp", "CutMix"):
        expected |= {"torchvision"} if per == "batch" and (method, dtype) != ("MixUp", "uint8") else set()
        expected |= {"timm"} if dtype != "uint8" else set()
        expected |= {"kornia"} if per != "pair" and dtype != "uint8" else set()
    if per != "pair" and dtype != "uint8":
        expected |= {"numpy"} if method == "FMix" else {"PyTorch"}
    assert providers == expected


def fm_has_cpp():
    return "cpp" in contenders.backends_for(CPU)


@pytest.mark.parametrize("method", ["MixUp", "CutMix"])
def test_a_peer_that_differs_gets_no_figures(method, monkeypatch):
    """Its row says why; nothing is printed as a ratio; the others are measured."""
    from torchvision.transforms import v2

    def wrong(self, *inputs):
        images, targets = forward(self, *inputs)
        return images + 1e-3, targets

    forward = getattr(v2, method).forward
    monkeypatch.setattr(getattr(v2, method), "forward", wrong)
    case = Case(method, "batch", **SMALL)
    rows = sweep.Bench(CPU, ["reference"], ["torchvision", "timm"], 1, 0.001).measure(case)
    by_provider = {row.provider: row for row in rows}
    assert "not close" in by_provider["torchvision"].failed
    assert by_provider["torchvision"].median_us == by_provider["torchvision"].copy_ratio == 0
    assert by_provider["timm"].median_us > 0
    cells = [cell.strip() for cell in report.table(rows).splitlines()[2].split("|")]
    assert cells[-3] == "differs"
    assert cells[-2].endswith("×")


@pytest.mark.parametrize("break_", ["images", "targets", "in place"])
def test_checks_see_what_is_wrong(break_):
    case = Case("HMix", "sample", **SMALL)
    x, y = batch(case)
    (contender,) = (c for c in contenders.contenders(case, CPU, ["reference"], []) if c.inplace)
    step = contender.step

    good = contenders.seeded(step, x.clone(), y)
    images, targets = good
    wrong = {"images": (images + 1e-2, targets), "targets": (images, targets.roll(1, 0)), "in place": (x, targets)}
    contenders.same(good, good, x)
    with pytest.raises(AssertionError):
        contenders.same(wrong[break_], good, x)


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
@pytest.mark.parametrize("method", ["MixUp", "CutMix", "HMix", "GMix"])
def test_plain_draws_are_those_of_the_methods(method, size, n):
    """Label weights are the means of the masks that the reference makes of the same numbers, λ is uniform."""
    generator = np.random.default_rng(n)
    for _ in range(20):
        numbers = plain.draw(method, n, *size, generator)
        plan = plain.plan_of(method, numbers, 7, size)
        torch.testing.assert_close(plan.mask().flatten(1).mean(1), plan.weight.float(), rtol=0, atol=1e-5)
    lam = plain.draw("MixUp", 4000, *size, generator).weight
    assert abs(float(lam.mean()) - 0.5) < 4 / math.sqrt(12 * 4000)


# ---- measuring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("method", cases.METHODS)
def test_floors(method, inplace):
    """DESIGN's table: 2N for blends and for whatever is not in place, 2(1-w)N for binary masks, targets, bits."""
    case = Case(method, "sample", size=64, batch=10, classes=7)
    batch_bytes, targets = 10 * 3 * 64 * 64 * 4, 4 * 10 * 7
    touched = 1.0
    if inplace and method == "CutMix":
        touched = 1 - float(fm.CutMix(per="sample").sample(20000, (64, 64), seed=3).weight.mean())
    if inplace and method == "FMix":
        touched = 0.5
    bits = 10 * 64 * 64 // 8 if method == "FMix" else 0
    expected = 2 * batch_bytes * touched + targets + bits
    assert sweep.floor_bytes(case, inplace) == pytest.approx(expected, rel=0.02 if touched not in (0.5, 1.0) else 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_clones(layout, dtype):
    case = Case("MixUp", layout=layout, dtype=dtype, **SMALL)
    clones = device.Clones(case.shape, case.torch_dtype, CPU, layout == "channels_last")
    assert clones.count >= 4
    assert clones.count * clones.bytes > 3 * device._cache(CPU) or clones.count == 128
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    before = [x.clone() for x in clones.x]
    for x, out in zip(clones.x, clones.out, strict=True):
        assert x.shape == case.shape
        assert x.dtype == case.torch_dtype
        assert x.is_contiguous(memory_format=form)
        assert out.is_contiguous(memory_format=form)
        x.zero_()
    clones.refill()
    assert all(torch.equal(x, y) for x, y in zip(clones.x, before, strict=True))


def test_memory_of_a_call():
    x = torch.ones(1000, 250)
    assert device.extra_memory(lambda: x.mul_(1), CPU) < 1000
    assert device.extra_memory(lambda: x * 2, CPU) == pytest.approx(x.nbytes, rel=0.01)
    assert device.extra_memory(lambda: (x * 2) * 3 + 1, CPU) == pytest.approx(2 * x.nbytes, rel=0.01)


def test_rows(tmp_path):
    """Ratios are to copies of the same run; rows survive their file."""
    case = Case("CutMix", "batch", backward=True, **SMALL)
    rows = sweep.Bench(CPU, ["reference"], EAGER, 2, 0.001).measure(case)
    ours = next(row for row in rows if row.provider == "fusedmix")
    assert not ours.inplace  # there is no gradient of what is overwritten
    assert not [row.failed for row in rows if row.failed]
    copied = [row for row in rows if row.provider.startswith("copy") and row.floor_bytes == ours.floor_bytes]
    assert ours.copy_ratio == pytest.approx(ours.median_us / min(row.median_us for row in copied))
    assert ours.floor_bytes == 2 * 2 * 6 * 3 * 16 * 16 * 4 + 4 * 6 * 5
    assert ours.gb_per_s == pytest.approx(ours.floor_bytes / ours.median_us / 1e3)
    assert all(row.p20_us <= row.median_us <= row.p80_us and row.rounds == 2 for row in rows)
    assert ours.host_us > 0
    assert ours.extra_mib > 0
    env = dict.fromkeys(("device", "driver", "torch", "cuda", "triton", "commit", "date"), "x")
    from fusedmix.bench.results import write_csv

    write_csv(tmp_path / "rows.csv", rows, env)
    again = report.read(tmp_path / "rows.csv")
    assert list(report.by_case(again)) == [case]
    for read, row in zip(again, rows, strict=True):
        for name, value in dataclasses.asdict(row).items():
            rounded = pytest.approx(value, rel=1e-3, abs=0.01) if isinstance(value, float) else value
            assert getattr(read, name) == rounded, name
    write_csv(tmp_path / "again.csv", again, env)
    assert report.table(report.read(tmp_path / "again.csv")) == report.table(again)


def test_cases():
    """Every axis is swept; a product has all combinations."""
    found = cases.swept_cases()
    assert len(found) == len(set(found))
    for axis, values in {
        "method": cases.METHODS,
        "per": cases.PERS,
        "size": (32, 224, 384),
        "dtype": cases.DTYPES,
        "layout": cases.LAYOUTS,
        "backward": (False, True),
    }.items():
        assert {getattr(case, axis) for case in found} == set(values)
    assert len({case.classes for case in found}) >= 3
    assert len({case.batch for case in found}) >= 5
    of_two = list(
        cases.product_of({"per": ("batch", "sample"), "size": (32, 48), "classes": (3,)} | {"method": ("GMix",)})
    )
    assert {(case.per, case.size, case.batch) for case in of_two} == {
        (per, size, number) for per in ("batch", "sample") for size, number in ((32, 512), (48, 128))
    }


# ---- the command -----------------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    arguments = ["--methods", "MixUp,FMix", "--sizes", "16", "--batches", "4", "--classes", "3", "--rounds", "1"]
    assert cli.main(["bench", *arguments, "--peers", ",".join(EAGER), "--out", str(tmp_path), "--commit", "abc"]) == 0
    out = capsys.readouterr().out
    assert "[1/2" in out
    assert "| MixUp, per batch, 4x3x16x16, float32, 3 classes" in out
    assert {path.name for path in tmp_path.iterdir()} == {
        "bench.csv",
        "bench-environment.json",
        "bench.md",
        "bench.png",
    }
    with (tmp_path / "bench.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["provider"] for row in rows} == {"fusedmix", *EAGER, "copy (copy_)", "copy (neg)"}
    assert {row["commit"] for row in rows} == {"abc"}
    assert (tmp_path / "bench.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "Mixup"], "'Mixup'"),
        (["--sizes", "0"], "at least 1"),
        (["--quick", "--sizes", "3"], "--quick"),
        (["--peers", "albumentations"], "'albumentations'"),
    ],
)
def test_bad_arguments(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", *arguments, "--out", str(tmp_path / "x")])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path, capsys):
    assert cli.main(["bench", "--device", "cuda", "--out", str(tmp_path)]) == 1
    assert "finds no GPU" in capsys.readouterr().err


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch):
    """Cases are measured at once, every one with the same times; until `ends`, when it raises."""

    def measure(self, case):
        made.append(case)
        if ends and len(made) == 3:
            raise ends[0]
        row = sweep.Row.of(case, "fusedmix", backend="cpp", measure="wall", rounds=3)
        row.median_us, row.p20_us, row.p80_us, row.copy_ratio = 3.0, 2.0, 4.0, 1.0
        return [row]

    made, ends = [], []
    monkeypatch.setattr(sweep.Bench, "measure", measure)
    monkeypatch.setattr(report, "plot", lambda rows, path, title: path.write_bytes(b""))
    return ends


FILES = {"bench.csv", "bench.md", "bench.png", "bench-environment.json"}


@pytest.mark.parametrize(("ended", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141)])
def test_what_was_measured_before_the_end_is_written(ended, code, measured, tmp_path, capfd):
    measured.append(ended)
    assert cli.main(["bench", "--quick", "--out", str(tmp_path)]) == code
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert len(report.read(tmp_path / "bench.csv")) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_quick_begins_nothing_after_its_time(measured, tmp_path, monkeypatch, capsys):
    clock = iter([0.0, *range(0, 1000, 20)])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    assert cli.main(["bench", "--quick", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert len(report.read(tmp_path / "bench.csv")) == 3  # begun after 0, 20 and 40 s
    assert f"{len(cases.quick_cases()) - 3} cases are left out" in out
    lines = [line for line in out.splitlines() if line.startswith("[")]
    assert re.match(r"\[1/18, 0 s, load [\d.]+\] ", lines[0])
    assert re.match(r"\[2/18, 20 s, some 6 min left, load [\d.]+\] ", lines[1])  # 17 cases of 20 s


def test_times_of_a_busy_machine_are_marked():
    rows = []
    for provider, low, high in (("fusedmix", 2.0, 4.0), ("torchvision", 2.0, 4.1), ("timm", 1.0, 1.9)):
        row = sweep.Row.of(Case("MixUp", **SMALL), provider, rounds=3)
        row.median_us, row.p20_us, row.p80_us = 3.0, low, high
        rows.append(row)
    table = report.table(rows)
    assert table.count("(busy)") == 2
    assert "1.0× (busy)" in table
    assert "(busy): 1 of 3 measurements vary by more than a factor of 2" in table
    rows[1].p80_us = 4.0
    assert "busy" not in report.table(rows)
