"""`benchmarks.input_step`: who is measured, that all are shown to do the same, and what comes out. Times are not looked
at."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fusedmix as fm
from test_benchmarks import CHECK, SUMMARY, TIMING, first_cells, rows, run
from test_pages import DOCS, module_at

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks is no part of what is installed

from benchmarks import input_peers, input_rows, input_step, tables
from benchmarks.input_rows import CASES, QUICK, Case, row_of
from fusedmix import erasing

INPUT = {"input_format", "erased", "images_per_s", "failed"}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def peers():
    for package in ("torchvision", "timm"):
        pytest.importorskip(package)


def batch(case):
    generator = torch.Generator().manual_seed(0)
    shape = (6, 20, 22, 3) if case.input_format == "NHWC" else (6, 3, 20, 22)
    x = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return x, torch.randint(input_peers.CLASSES, (6,), generator=generator)


@pytest.fixture
def found(monkeypatch):
    """The contenders of a case. What torch.compile would be given is called as it is: tracing takes long."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return lambda case: {c.provider: c for c in input_peers.contenders(case, CPU, ["reference"], traced=True)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everybody_does_the_same(case, found):
    x, y = batch(case)
    there = found(case)
    assert next(iter(there)) == "fusedmix"
    expected = {"fusedmix", "torch.compile"} | ({"timm", input_rows.LOADER} if case.pairing == "roll" else set())
    assert set(there) == expected | ({"torchvision"} if (case.per, case.pairing) == ("batch", "roll") else set())
    before = x.clone()
    for contender in there.values():
        contender.check(x, y)
        images, targets = contender.step(x, y)
        assert (images.dtype, images.shape) == (getattr(torch, case.dtype), (6, 3, 20, 22))
        assert targets.shape == ((6, input_peers.CLASSES) if case.method else (6,))
        assert torch.equal(x, before)


@pytest.mark.parametrize("case", [Case("MixUp"), Case("CutMix", dtype="bfloat16"), Case("")], ids=str)
@pytest.mark.parametrize("wrong", ["mean", "std", "layout"])
def test_who_differs_is_found(case, wrong, found, monkeypatch):
    """The peers, where what they are compared with is something else."""
    finishes = {
        "mean": {"normalize": (tuple(m + 0.2 for m in input_peers.MEAN), input_peers.STD)},
        "std": {"normalize": (input_peers.MEAN, tuple(2 * s for s in input_peers.STD))},
        "layout": {"memory_format": torch.channels_last},
    }
    made = input_peers.finish_of
    monkeypatch.setattr(input_peers, "finish_of", lambda *a, **k: replace(made(*a, **k), **finishes[wrong]))
    there = found(case)
    for peer in (*input_rows.PEERS, input_rows.LOADER):
        with pytest.raises(AssertionError, match="images "):
            there[peer].check(*batch(case))


@pytest.mark.parametrize("peer", input_rows.PEERS)
def test_other_labels_are_found(peer, found, monkeypatch):
    torchvision_v2 = pytest.importorskip("torchvision.transforms.v2")
    case = Case("CutMix")
    x, y = batch(case)
    contender = found(case)[peer]
    contender.check(x, y)
    mixed = fm.mix_labels

    def other(*a, **k):
        return mixed(*a, **k).roll(1, 0)

    monkeypatch.setattr(fm, "mix_labels", other)
    monkeypatch.setattr("fusedmix.integrations.timm.mix_labels", other)
    theirs = torchvision_v2.CutMix._mixup_label
    monkeypatch.setattr(torchvision_v2.CutMix, "_mixup_label", lambda *a, **k: theirs(*a, **k).roll(1, 0))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        contender.check(x, y)


def test_what_is_no_rectangle_of_zeros_is_found():
    whole = torch.ones(2, 3, 6, 6)
    erased = whole.clone()
    erased[0, :, 1:3, 2:5] = 0
    input_peers._erases(erased, whole)
    other, corner, two = erased.clone(), erased.clone(), erased.clone()
    other[0, :, 1:3, 2:5] = 0.5
    corner[0, :, 1, 2] = 1
    two[0, :, 1:3, 0] = 0
    for wrong in (other, corner, two, whole):
        with pytest.raises(AssertionError, match="what is erased"):
            input_peers._erases(wrong, whole)


def test_flips_and_holes_by_numpy_have_the_law():
    """Of as many samples by our own draws, whose law tests/test_erase.py compares with timm's."""
    n, size = 20_000, (40, 56)
    finish = fm.Finish(None, hflip=input_peers.HFLIP, erase=input_peers.ERASE)
    ours = erasing.draw(erasing.chances(finish), torch.tensor(5), n, size)
    theirs = input_peers._flips_and_holes(n, *size, np.random.default_rng(0))
    assert theirs.shape == ours.shape
    assert theirs.dtype == ours.dtype
    columns = [column for column in range(ours.shape[1]) if column not in (2, 3)]  # but for the seed of the noise
    ours, theirs = (records[:, columns].double() for records in (ours, theirs))
    for power in (1, 2):
        means = [(records**power).mean(0) for records in (ours, theirs)]
        errors = ((ours**power).var(0) / n + (theirs**power).var(0) / n).sqrt()
        assert ((means[0] - means[1]).abs() <= 4 * errors).all()


@pytest.mark.parametrize(
    ("device", "there", "measured"),
    [
        ("cpu", ["cpp", "reference"], ["cpp"]),
        ("cpu", ["reference"], ["reference"]),
        ("cuda", ["triton", "cuda", "reference"], ["triton", "cuda"]),
        ("cuda", ["reference"], ["reference"]),
    ],
    ids=("kernel", "no compiler", "kernels", "no kernels"),
)
def test_backends_that_are_measured(device, there, measured, monkeypatch):
    monkeypatch.setattr(input_step, "backends_for", lambda device: there)
    assert input_step.backends_of(torch.device(device)) == measured


# ---- rows, table, targets --------------------------------------------------------------------------------------------


def timed(case, provider, median, measure="wall", call="step", ratio=1.0, **more):
    row = row_of(case, measure, provider, call, shape="64x3x224x224", **more)
    row.record([float(median)] * 5)
    row.images_per_s, row.copy_ratio = 64e6 / median, ratio
    return row


def test_table():
    mixup, cutmix = Case("MixUp"), Case("CutMix", "sample", "random", "NHWC", "bfloat16", "channels_last", True)
    said = input_rows.input_table(
        [
            timed(mixup, "fusedmix", 8000, backend="cuda", ratio=1.25),
            timed(mixup, "fusedmix", 16000, backend="triton"),
            timed(mixup, "torchvision", 64000),
            replace(timed(mixup, "timm", 1), failed="AssertionError: images differ"),
            timed(mixup, "copy (neg)", 6400, call="copy"),
            replace(timed(cutmix, "fusedmix", 1, backend="cuda"), failed="RuntimeError: out of memory"),
            replace(timed(cutmix, "torch.compile", 32000), p20_us=1.0),
        ]
    )
    table, _, busy = said.partition("\n\n")
    header, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    assert header == ["images a second", "fusedmix", "ms", "× copy", "torchvision", "timm", "torch.compile", "triton"]
    assert lines == [
        ["MixUp, NCHW to float32", "8000", "8.00 (8.00 to 8.00)", "1.25", "1000 (8.0×)", "differs", "", "4000 (2.0×)"],
        [
            "CutMix, per sample, random partners, flipped, erased, NHWC to bfloat16 channels_last",
            *("failed", "", "", "", "", "2000 (busy)", ""),
        ],
    ]
    assert busy.startswith("(busy): 1 of 7 ")


@pytest.mark.parametrize(
    ("peers", "missed"),
    [((48.1, 12.1), []), ((47.9, 12.1), ["torchvision"]), ((48.1, 11.9), ["torch.compile"])],
)
def test_targets_of_a_cpu(peers, missed):
    found = []
    for case in (Case("MixUp"), Case("CutMix"), Case("MixUp", dtype="bfloat16")):
        found += [timed(case, "fusedmix", 8, backend="cpp"), timed(case, "torchvision", peers[0])]
        found.append(timed(case, "torch.compile", peers[1]))
    checks = input_rows.targets(found)
    assert len(checks) == 4
    assert [check.what.rpartition(" ")[2] for check in checks if not check.met] == missed * 2


def test_targets_of_a_gpu():
    cases = [Case("MixUp", dtype="bfloat16"), Case("MixUp", "sample", "random", dtype="bfloat16")]
    cases += [Case("CutMix", dtype="bfloat16", erased=True), Case("CutMix")]
    found = [timed(case, "fusedmix", 8, "device", backend="cuda", ratio=1.26) for case in cases]
    checks = input_rows.targets(found)
    assert [(check.limit, check.met) for check in checks] == [(1.15, False), (1.25, False), (1.35, True)]


def test_a_page_says_that_there_are_no_results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for table in (tables.input_step, tables.input_step_all):
        assert table() == "There are no results of `python -m benchmarks.input_step` yet.\n"


@pytest.mark.thorough
def test_input_step(tmp_path, monkeypatch):
    said = run("input_step", "--quick", "--threads", 1, "--commit", "abc", "--out", tmp_path)
    names = ("cpu-input-step.csv", "cpu-input-step-targets.csv", "cpu-input-step-environment.json")
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    timed = rows(tmp_path / names[0], TIMING | SUMMARY | INPUT)
    assert not [row["failed"] for row in timed if row["failed"]]
    assert {row["provider"] for row in timed if row["call"] == "step"} == {
        "fusedmix",
        *input_rows.PEERS,
        input_rows.LOADER,
    }
    assert {row["backend"] for row in timed if row["provider"] == "fusedmix"} == {"reference"}
    assert all(float(row["median_us"]) > 0 and float(row["copy_ratio"]) > 0 for row in timed)
    assert all(
        float(row["images_per_s"]) == pytest.approx(8e6 / float(row["median_us"]), rel=1e-4)
        for row in timed
        if row["call"] == "step"
    )
    checks = rows(tmp_path / names[1], CHECK)
    assert f"of {len(checks)} targets met" in said
    assert json.loads((tmp_path / names[2]).read_text())["threads"] == 1
    bars = [line for line in said.splitlines() if line.startswith("[")]
    for n, (line, case) in enumerate(zip(bars, QUICK, strict=True)):
        assert re.fullmatch(rf"\[#{{{n}}}\.+\] {n + 1}/{len(QUICK)}, \d+ s, .*: {re.escape(str(case))}", line)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    cells = first_cells(tables.input_step())
    assert cells == first_cells(said)[: len(cells)]
    every = tables.input_step_all()
    assert every.count(f"{timed[0]['device']}, torch {torch.__version__}, commit abc") == 2
    assert len(first_cells(every)) == len(timed) + 2 + len(checks) + 2


# ---- the picture -----------------------------------------------------------------------------------------------------


class Moved(TorchDispatchMode):
    """Bytes that operations on whole batches read and write, views apart."""

    def __init__(self, least):
        super().__init__()
        self.least, self.bytes = least, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not view and isinstance(out, torch.Tensor):
            tensors = [t for t in (*args, out) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.nbytes for t in tensors if t.numel() >= self.least)
        return out


def test_bytes_of_the_picture():
    """What docs/pictures/draw.py draws is what the operations of the peers do."""
    v2, data = pytest.importorskip("torchvision.transforms.v2"), pytest.importorskip("timm.data")
    draw = module_at(DOCS / "pictures" / "draw.py")
    x, y = batch(Case("MixUp"))

    def moved(call, *args):
        with Moved(x.numel()) as seen:
            out = call(*args)
        return out, seen.bytes / x.numel()

    steps = {
        "ToDtype": v2.ToDtype(torch.float32, scale=True),
        "Normalize": v2.Normalize(input_peers.MEAN, input_peers.STD),
        "MixUp": lambda x: v2.MixUp(num_classes=10)(x, y % 10)[0],
        "to bfloat16": lambda x: x.to(torch.bfloat16),
    }
    made = x
    for name, step in steps.items():
        made, found = moved(step, made)
        assert found == draw.TORCHVISION[name], name
    loader = data.loader.PrefetchLoader([(x, y)], device=CPU, img_dtype=torch.bfloat16)
    [(made, _)], found = moved(list, loader)
    assert found == draw.TIMM["PrefetchLoader"]
    np.random.seed(0)
    assert moved(data.Mixup(mixup_alpha=1.0, num_classes=10), made, y % 10)[1] == draw.TIMM["Mixup"]
    assert set(steps) == set(draw.TORCHVISION)
    assert len(draw.TIMM) == 2
