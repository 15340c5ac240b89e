"""The tables of README.md and of docs/, made from the committed results: no figure in them is typed.

python -m benchmarks.tables            # writes them into their documents
python -m benchmarks.tables --check    # exit status 1: one of them differs from what its file says

Times are medians with the 20th and the 80th percentile. One whose percentiles are a factor of two apart is marked and
has no ratio; what was measured with changes that are in no commit is not shown; and a table says if the kernels that it
times have changed since. Each has its place between the comments `table: NAME` and `end of table`. Those of GPUs are
made of every <gpu>-mix.csv, <gpu>-train-step.csv and <gpu>-input-step.csv that gpu_mix.py, train_step.py and
input_step.py wrote, and say so where there is none.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from benchmarks.common import RESULTS, ROOT
from benchmarks.input_rows import InputTiming, input_table
from benchmarks.train_rows import loader_table, step_table
from fusedmix.bench import report
from fusedmix.bench.results import markdown
from fusedmix.bench.timing import Timing

README = ROOT / "README.md"
PERFORMANCE, ANALYSIS, ONE_PASS, ACCURACY, SEGMENTATION = (
    ROOT / "docs" / f"{name}.md" for name in ("performance", "analysis", "one-pass", "accuracy", "segmentation")
)
_PLACE = r"(<!-- table: {name} -->\n).*?(<!-- end of table -->)"


class NoResultsError(Exception):
    """There is no table; the text says why, and stands in its place."""


def cpu_mix() -> str:
    """Times of mixing on a CPU, beside torchvision's."""
    rows = _rows("cpu-mix.csv")
    timed = {(*_key(row), row["inplace"]): row for row in rows if row["measure"] == "wall"}

    def whole_call(method: str) -> tuple[str, ...]:
        def of(provider: str, inplace: str) -> dict[str, str]:
            return timed[provider, "module", method, "roll", "batch", "1", inplace]

        in_place, out_of_place, theirs = of("fusedmix", "True"), of("fusedmix", "False"), of("torchvision", "False")
        ratios = (_ratio(theirs, out_of_place), _ratio(theirs, in_place))
        return (f"`{method}`, a whole call", _time(in_place), "", _time(out_of_place), _time(theirs), *ratios)

    def images(method: str, share: str, label: str) -> tuple[str, ...]:
        in_place = (timed["fusedmix", "mix_", method, "roll", per, share, "True"] for per in ("batch", "sample"))
        out_of_place = timed["fusedmix", "mix", method, "roll", "batch", share, "False"]
        return (label, *map(_time, (*in_place, out_of_place)), "", "", "")

    lines = [whole_call(method) for method in ("MixUp", "CutMix")]
    lines += [images(method, "1", f"{method}, the images") for method in ("MixUp", "HMix", "GMix")]
    boxes = sorted({row["share"] for row in rows if row["method"] == "CutMix" and row["share"] != "1"})
    lines += [images("CutMix", share, f"CutMix, box {float(share):.0%}, the images") for share in boxes]
    places = ("in place", "in place, per sample", "out of place")
    header = ("ms", *places, "torchvision", "over ours", "over ours in place")
    copy, clone = (next(row for row in rows if row["call"] == call) for call in ("copy", "clone"))
    host = {(row["method"], row["provider"]): row for row in rows if row["measure"] == "host"}
    calls = "; ".join(
        f"`{name}` {_microseconds(host[name, 'fusedmix'])}, torchvision's {_microseconds(host[name, 'torchvision'])}"
        for name in ("MixUp", "CutMix")
    )
    return (
        f"{markdown(header, lines)}\n\nfloat32, {_shape(rows[0]['shape'])}, 2 threads; {_SPREAD}. `out.copy_(x)` takes "
        f"{_time(copy)} ms, and `x.clone()` {_time(clone)} ms. A whole call of a module on a 4×3×8×8 batch: {calls}.\n"
        f"{_source('python -m benchmarks.cpu_mix', rows[0])}\n"
    )


def cpu_fmix() -> str:
    """Times of FMix's masks on a CPU, beside the NumPy pipeline."""
    rows = _rows("cpu-fmix.csv")
    masks = {(row["provider"], row["shape"]): row for row in rows if row["call"] == "mask"}
    lines = [
        (_shape(shape), *(_time(row) for row in (ours, masks["numpy", shape])), _ratio(masks["numpy", shape], ours))
        for (provider, shape), ours in masks.items()
        if provider == "fusedmix"
    ]
    steps = {(row["method"], row["per"]): row for row in rows if row["call"] == "module"}
    times = ", ".join(f"{method} {_time(steps[method, 'sample'])} ms" for method in ("MixUp", "CutMix", "FMix"))
    shape = _shape(steps["FMix", "sample"]["shape"])
    table = markdown(("ms a mask, one thread", "fusedmix", "NumPy", "ratio"), lines)
    what = f"A whole step in place on {shape} float32, per sample, 2 threads: {times}"
    return f"{table}\n\n{_SPREAD.capitalize()}. {what}.\n{_source('python -m benchmarks.cpu_fmix', rows[0])}\n"


def cpu_loss() -> str:
    """Times of the label losses on a CPU, forwards and backwards, beside PyTorch's on dense targets."""
    rows = _rows("cpu-loss.csv")
    lines = [
        _beside(f"`{ours['call']}`, {_shape(ours['shape'])}, {ours['dtype']}", ours, theirs)
        for ours, theirs in _pairs(rows)
    ]
    table = markdown(("ms, 2 threads", "fusedmix", "dense targets", "ratio"), lines)
    return f"{table}\n\n{_SPREAD.capitalize()}.{_note(rows)}\n{_source('python -m benchmarks.cpu_loss', rows[0])}\n"


def cpu_pixel_loss() -> str:
    """Times of the loss of label maps on a CPU, forwards and backwards, beside PyTorch's on dense targets."""
    rows = _rows("cpu-pixel-loss.csv")
    lines = [
        (f"{_shape(ours['shape'])}, {ours['dtype']}", *map(_time, (ours, *theirs)), *(_ratio(t, ours) for t in theirs))
        for ours, *theirs in zip(rows[::3], rows[1::3], rows[2::3], strict=True)
    ]
    header = ("ms, 2 threads", "fusedmix", "PyTorch", "on `mix_masks`", "PyTorch over ours", "on `mix_masks` over ours")
    source = _source("python -m benchmarks.cpu_pixel_loss", rows[0])
    return f"{markdown(header, lines)}\n\n{_SPREAD.capitalize()}.{_note(rows)}\n{source}\n"


def cpu_methods() -> str:
    """Times of the methods that paste or look at the images on a CPU, beside OpenMixup's code."""
    rows = _rows("cpu-methods.csv")
    lines = [_beside(f"{ours['method']}, per {ours['per']}", ours, theirs) for ours, theirs in _pairs(rows)]
    table = markdown(("ms, 64×3×224×224, 2 threads", "fusedmix", "OpenMixup", "ratio"), lines)
    return f"{table}\n\n{_SPREAD.capitalize()}.{_note(rows)}\n{_source('python -m benchmarks.method_peers', rows[0])}\n"


def cpu_puzzle() -> str:
    """Times of PuzzleMix's masks on a CPU, beside the authors' code."""
    rows = _rows("cpu-puzzle.csv")
    lines = [_beside(f"{_shape(ours['call'].partition('-')[2])} blocks", ours, theirs) for ours, theirs in _pairs(rows)]
    table = markdown(("ms, 64×3×224×224, 2 threads", "fusedmix", "authors", "ratio"), lines)
    return f"{table}\n\n{_SPREAD.capitalize()}.{_note(rows)}\n{_source('python -m benchmarks.puzzle_peers', rows[0])}\n"


def cpu_fallback() -> str:
    """Times of the reference backend on a CPU beside torchvision's, which have one mask a batch."""
    rows = [row for row in _rows("cpu-fallback.csv") if row["measure"] == "wall, 1 threads" and row["per"] == "batch"]
    timed = {(row["shape"], row["method"], row["provider"], row["inplace"]): row for row in rows}
    lines = []
    for shape, method, provider, inplace in timed:
        theirs = timed.get((shape, method, "torchvision", "False"))
        if provider == "fusedmix" and inplace == "False" and theirs:
            ours = [timed[shape, method, provider, place] for place in ("False", "True")]
            ratios = (_ratio(theirs, row) for row in ours)
            lines.append((f"{method}, {_shape(shape)}", *map(_time, (theirs, *ours)), *ratios))
    header = ("ms, one thread", "torchvision", "`reference`", "in place", "torchvision over ours", "over ours in place")
    source = _source("python -m benchmarks.fallback", rows[0])
    return f"{markdown(header, lines)}\n\n{_SPREAD.capitalize()}.{_note(rows)}\n{source}\n"


def _pairs(rows: list[dict[str, str]]) -> list[tuple[dict[str, str], dict[str, str]]]:
    """Rows that stand in a file one after the other: ours and theirs."""
    return list(zip(rows[::2], rows[1::2], strict=True))


def _beside(what: str, ours: dict[str, str], theirs: dict[str, str]) -> tuple[str, ...]:
    return (what, _time(ours), _time(theirs), _ratio(theirs, ours))


def first_use() -> str:
    """From `pip install` to the first mixed batch."""
    found = json.loads((RESULTS / "cpu-first-use.json").read_text())
    first, second = found["first_process"], found["second_process"]
    lines = [
        ("`pip install .` (torch is there)", found["pip_install_s"], ""),
        ("`import torch`", first["torch imported_s"], second["torch imported_s"]),
        (
            "`import fusedmix`",
            _after(first, "fusedmix imported", "torch imported"),
            _after(second, "fusedmix imported", "torch imported"),
        ),
        (
            "building or loading `cpp`",
            _after(first, "backends ready", "fusedmix imported"),
            _after(second, "backends ready", "fusedmix imported"),
        ),
        ("the first batch is mixed, after", first["first batch_s"], second["first batch_s"]),
    ]
    table = markdown(("seconds", "first process", "later ones"), lines)
    return f"{table}\n\n{_source('python -m benchmarks.first_use --pip', found['environment'])}\n"


def cpu_train_step() -> str:
    """What mixing takes of a training step on a CPU."""
    rows = _rows("cpu-train-step.csv")
    what = (
        f"ResNet-20, {rows[0]['shape'].replace('x', '×')} {rows[0]['dtype']}, {rows[0]['threads']} threads; p20 to p80"
    )
    return f"{step_table(rows)}\n\n{what}.{_note(rows)}\n{_source('python -m benchmarks.train_step', rows[0])}\n"


def cpu_data_loader() -> str:
    """Mixing in a DataLoader's workers and after loading."""
    rows = _rows("cpu-data-loader.csv")
    batches = dict.fromkeys(f"{row['batch']} of {row['shape'].partition('x')[2].replace('x', '×')}" for row in rows)
    what = f"uint8 images in memory, batches of {' and '.join(batches)}; p20 to p80"
    return f"{loader_table(rows)}\n\n{what}.{_note(rows)}\n{_source('python -m benchmarks.data_loader', rows[0])}\n"


def input_step() -> str:
    """From bytes to a batch, on the CPU and on every GPU."""
    return _of_every_input(_inputs)


def _inputs(path: Path) -> str:
    rows = report.read(path, InputTiming)
    return f"{input_table(rows)}\n\nuint8, {_shape(rows[0].shape)}; ×: times as long as ours. {_input_source(path)}"


def input_step_all() -> str:
    """The same, every row, and what was asked of the times."""
    return _of_every_input(_every_input)


def _every_input(path: Path) -> str:
    header = ("from bytes", "by", "measured", "median µs", "p20", "p80", "× copy")
    lines = []
    for row in report.read(path, InputTiming):
        if not row.failed:
            times = (f"{_digits(row.median_us)}{report.mark(row)}", _digits(row.p20_us), _digits(row.p80_us))
            lines.append((row.case, row.name, row.measure, *times, f"{row.copy_ratio:.2f}"))
    source = _input_source(path)
    asked = path.with_name(f"{path.stem}-targets.csv")
    return f"{markdown(header, lines)}\n\n{source}\n{_targets((_input_command(path), asked.name))}"


def _of_every_input(table: Callable[[Path], str]) -> str:
    """The tables made of every *-input-step.csv, the CPU's first."""
    files = sorted(RESULTS.glob("*-input-step.csv"), key=lambda path: (not path.name.startswith("cpu-"), path.name))
    return "\n".join(map(table, files)) or "There are no results of `python -m benchmarks.input_step` yet.\n"


def _input_source(path: Path) -> str:
    return f"{_source(_input_command(path), _rows(path.name)[0])}\n"


def _input_command(path: Path) -> str:
    return "python -m benchmarks.input_step" + ("" if path.name.startswith("cpu-") else " --device cuda")


# ---- docs/performance.md: every row ----------------------------------------------------------------------------------


def cpu_mix_all() -> str:
    """Every time of mixing on a CPU."""
    rows = [row for row in _rows("cpu-mix.csv") if row["measure"] == "wall"]
    return f"{_times(rows)}\n\n{_conditions(rows)} {_source('python -m benchmarks.cpu_mix', rows[0])}\n"


def cpu_host() -> str:
    """What a call costs where the batch is too small to matter."""
    rows = [row for row in _rows("cpu-mix.csv") if row["measure"] == "host"]
    return f"{_times(rows)}\n\n{_conditions(rows)} {_source('python -m benchmarks.cpu_mix', rows[0])}\n"


def cpu_fmix_all() -> str:
    """Every time of FMix on a CPU."""
    rows = _rows("cpu-fmix.csv")
    masks = [row for row in rows if row["call"] == "mask"]
    steps = [row for row in rows if row["call"] != "mask"]
    return (
        f"{_times(masks)}\n\nA mask, one thread. {_source('python -m benchmarks.cpu_fmix', masks[0])}\n\n"
        f"{_times(steps)}\n\n{_conditions(steps)} {_source('python -m benchmarks.cpu_fmix', steps[0])}\n"
    )


def cpu_loss_all() -> str:
    """Every time of the label losses on a CPU."""
    rows = _rows("cpu-loss.csv")
    return f"{_times(rows)}\n\n2 threads. {_source('python -m benchmarks.cpu_loss', rows[0])}\n"


def cpu_bench() -> str:
    """Whole steps on a CPU beside the peers'."""
    return (
        f"{report.table(report.read(RESULTS / 'cpu-bench.csv'))}\n\n2 threads. "
        f"{_source('python -m benchmarks.cpu_bench', _rows('cpu-bench.csv')[0])}\n"
    )


def cpu_targets() -> str:
    """What was asked of the CPU's times, and what came."""
    return _targets(
        ("python -m benchmarks.cpu_mix", "cpu-targets.csv"),
        ("python -m benchmarks.cpu_fmix", "cpu-fmix-targets.csv"),
        ("python -m benchmarks.cpu_loss", "cpu-loss-targets.csv"),
        ("python -m benchmarks.cpu_pixel_loss", "cpu-pixel-loss-targets.csv"),
    )


def gpu_train_step() -> str:
    """What mixing takes of a training step on a GPU: in short, the pairs of the same batch by theirs and by ours."""
    return _of_every_gpu("train-step", _shares)


def _shares(path: Path) -> str:
    rows = _rows(path.name)
    steps = {(row["model"], row["mixer"]): row for row in rows if row["call"] == "step"}
    models = list(dict.fromkeys(model for model, _ in steps))
    nothing = [f"{float(steps[model, 'none']['median_us']) / 1e3:.1f} ms" for model in models]
    lines = [("nothing is mixed: the step takes", *nothing)]
    for mixer in dict.fromkeys(mixer for _, mixer in steps):
        if mixer.endswith(("MixUp", "CutMix", ", batch", ", elem")):
            found = [steps.get((model, mixer)) for model in models]
            lines.append((mixer, *(f"{float(row['mixing_share']):.1%}" if row else "" for row in found)))
    table = markdown(("of the step, mixing takes", *(_MODELS[model] for model in models)), lines)
    batches = dict.fromkeys(_shape(row["shape"]) for row in rows)
    source = _source("python -m benchmarks.train_step --device cuda", rows[0])
    return f"{table}\n\nBatches of {' and '.join(batches)}, {rows[0]['dtype']} autocast.\n{source}\n"


def gpu_train_step_all() -> str:
    """The same, every row."""
    return _of_every_gpu("train-step", _steps)


def _steps(path: Path) -> str:
    parts = []
    rows = _rows(path.name)
    for model in dict.fromkeys(row["model"] for row in rows):
        some = [row for row in rows if row["model"] == model]
        what = f"{_MODELS[model]}, {_shape(some[0]['shape'])}, {some[0]['dtype']} autocast; p20 to p80."
        source = _source("python -m benchmarks.train_step --device cuda", some[0])
        parts.append(f"{step_table(some)}\n\n{what}\n{source}\n")
    return "\n".join(parts)


_MODELS = {"resnet20": "ResNet-20", "resnet50": "ResNet-50", "vit_s": "ViT-S"}


def gpu_mix() -> str:
    """Times of mixing large images by `cuda` and by its peers, as ratios to a copy of the batch."""
    return _of_every_gpu("mix", _ratios)


def _ratios(path: Path) -> str:
    rows = [row for row in _rows(path.name) if row["measure"] == "device" and not _layout(row)]
    shape = next(row["shape"] for row in rows if row["method"] == "MixUp")
    header = ("in copies of the batch", "in place, roll", "in ms", "flip", "per sample", "out of place", "whole call")
    peers = ("torch.compile, in place", "out of place", "torchvision, whole call")
    parts = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows if row["shape"] == shape):
        some = [row for row in rows if (row["dtype"], row["shape"]) == (dtype, shape) and row["backend"] != "triton"]
        copy = min(float(row["median_us"]) for row in some if row["call"] == "copy" and row["share"] == "1")
        timed = {(*_key(row)[:-1], row["inplace"]): row for row in some}
        of_copy = {column: f"{float(row['median_us']) / copy:.2f}" for column, row in timed.items()}
        lines = []
        for method in ("MixUp", "HMix", "GMix", "CutMix"):
            columns = (
                ("fusedmix", "mix_", method, "roll", "batch", "True"),
                ("fusedmix", "mix_", method, "flip", "batch", "True"),
                ("fusedmix", "mix_", method, "roll", "sample", "True"),
                ("fusedmix", "mix", method, "roll", "batch", "False"),
                ("fusedmix", "module", method, "roll", "batch", "False"),
                ("torch.compile", "mix_", method, "roll", "batch", "True"),
                ("torch.compile", "mix", method, "roll", "batch", "False"),
                ("torchvision", "module", method, "roll", "batch", "False"),
            )
            first, *others = (of_copy.get(column, "") for column in columns)
            lines.append((method, first, _time(timed[columns[0]]), *others))
        ours = [row for row in some if row["backend"] == "cuda" and row["call"] == "mix_"]
        boxes = {row["per"]: float(row["share"]) for row in ours if row["method"] == "CutMix"}
        what = f"`cuda`, {dtype}, {_shape(shape)}, {_SPREAD}; 1 is the fastest copy of the batch, {copy / 1e3:.3f} ms"
        changed = " or ".join(f"{boxes[per]:.0%} ({name})" for per, name in _BOXES.items() if per in boxes)
        table = markdown((*header, *peers), lines)
        source = _source("python -m benchmarks.gpu_mix", rows[0])
        parts.append(f"{table}\n\n{what}. CutMix in place changes {changed} of the batch.\n{source}\n")
    return "\n".join(parts)


_BOXES = {"batch": "one box", "sample": "a box each"}


def gpu() -> str:
    """Every time on every GPU of which there are results."""
    return _of_every_gpu("mix", _gpu)


def _of_every_gpu(name: str, table: Callable[[Path], str]) -> str:
    """The tables made of every <gpu>-NAME.csv."""
    files = sorted(path for path in RESULTS.glob(f"*-{name}.csv") if not path.name.startswith("cpu-"))
    return "\n".join(map(table, files)) or "There are no results of a GPU in `benchmarks/results`.\n"


# Of backends that were wrong at a commit, the calls that gpu_mix timed there without comparing them first: these are
# speeds of nothing. What it compared and found wrong is not in its files.
_NOT_COMPARED = {("c1b27df", "triton"): ("mix", "step", "module")}


def is_shown(row: dict[str, str]) -> bool:
    """Whether what a row times was right, as far as is known."""
    return row["measure"] != "device" or row["call"] not in _NOT_COMPARED.get((row["commit"], row["backend"]), ())


def _gpu(path: Path) -> str:
    command = "python -m benchmarks.gpu_mix"
    every = _rows(path.name)
    rows = [row for row in every if is_shown(row)]
    source = _source(command, rows[0])
    parts = [f"### {rows[0]['device']}\n"]
    for measure in dict.fromkeys(row["measure"] for row in rows):
        found = [row for row in rows if row["measure"] == measure]
        for batch in dict.fromkeys(map(_batch, found)):
            title = f"{_MEASURES.get(measure, measure)}, {batch}"
            some = [row for row in found if _batch(row) == batch]
            parts.append(f"#### {title}\n\n{_times(some)}\n\n{source}\n")
    hidden = [row for row in every if not is_shown(row)]
    if hidden:
        backends = ", ".join(f"`{name}`" for name in sorted({row["backend"] for row in hidden}))
        reason = "their results were wrong, or had not been compared with the reference"
        parts.append(f"{len(hidden)} rows of {backends} are left out here, though they are in the file: {reason}.\n")
    targets = path.with_name(path.name.replace("-mix.csv", "-targets.csv"))
    if targets.exists():
        parts.append(f"#### Targets\n\n{_targets((command, targets.name))}")
    return "\n".join(parts)


def _layout(row: dict[str, str]) -> str:
    """Of a batch that is not contiguous. Older files have no such column."""
    return row.get("layout", "").removeprefix("contiguous")


def _batch(row: dict[str, str]) -> str:
    return " ".join(filter(None, (row["dtype"], _shape(row["shape"]), _layout(row))))


_MEASURES = {
    "device": "Time on the device",
    "wall": "Time of the call",
    "host": "Time on the host",
    "first process": "First calls of a first process",
    "later process": "First calls of a later process",
}
_COLUMNS: tuple[tuple[str, Callable[[dict[str, str]], str]], ...] = (
    ("what", lambda row: f"{row['method']}: {row['call']}" if row["method"] else row["call"]),
    ("by", lambda row: f"{row['provider']} ({row['backend']})" if row["backend"] else row["provider"]),
    ("in place", lambda row: "yes" if row["inplace"] == "True" else ""),
    ("pairing", lambda row: row["pairing"]),
    ("per", lambda row: row["per"]),
    ("dtype", lambda row: row["dtype"]),
    ("shape", lambda row: _shape(row["shape"])),
    ("share", lambda row: f"{float(row['share']):.0%}"),
    ("median µs", lambda row: f"{_digits(row['median_us'])}{report.mark(_timing(row))}"),
    ("p20", lambda row: _digits(row["p20_us"])),
    ("p80", lambda row: _digits(row["p80_us"])),
    ("× copy", lambda row: f"{float(row['copy_ratio']):.2f}" if float(row["copy_ratio"]) else ""),
)


def _times(rows: Sequence[dict[str, str]]) -> str:
    """Every row; of the columns those in which the rows differ, and the times."""
    cells = {name: [cell(row) for row in rows] for name, cell in _COLUMNS}
    always = ("what", "by", "median µs", "p20", "p80")
    kept = [name for name in cells if name in always or len(set(cells[name])) > 1]
    return markdown(kept, zip(*(cells[name] for name in kept), strict=True)) + report.busy([*map(_timing, rows)])


def _conditions(rows: Sequence[dict[str, str]]) -> str:
    """What all rows of a table of the CPU have in common, and its columns leave out."""
    dtype, shape = rows[0]["dtype"], _shape(rows[0]["shape"])
    assert {(row["dtype"], _shape(row["shape"])) for row in rows} == {(dtype, shape)}
    return f"{dtype}, {shape}, 2 threads."


def _targets(*sources: tuple[str, str]) -> str:
    """Targets and what was measured, of one file or of several."""
    parts = []
    for command, name in sources:
        rows = _rows(name)
        lines = [
            (
                row["what"],
                f"{float(row['value']):.3g} {row['unit']}",
                f"{'≥' if row['at_least'] == 'True' else '≤'} {float(row['limit']):.3g}",
                "yes" if row["met"] == "True" else "**no**",
            )
            for row in rows
        ]
        table = markdown(("target", "measured", "limit", "met"), lines)
        parts.append(f"{table}\n\n{_source(command, rows[0])}\n")
    return "\n".join(parts)


def _shape(shape: str) -> str:
    return shape.replace("x", "×")


def _digits(microseconds: str | float) -> str:
    """Three digits at least, and no more than they are worth."""
    value = float(microseconds)
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


# ---- docs/analysis.md ------------------------------------------------------------------------------------------------


def theory_examples() -> str:
    """Label weights of every method over λ."""
    from fusedmix.analysis import examples

    return _theory("theory-examples.csv", examples)


def theory_coefficients() -> str:
    """Regularisation coefficients of every method."""
    from fusedmix.analysis import curves

    return _theory("theory-coefficients.csv", curves)


def theory_moons() -> str:
    """The mixed loss and its second-order approximation."""
    from fusedmix.analysis import moons

    return _theory("theory-moons.csv", moons)


def theory_designs() -> str:
    """What is wanted of masks, and what is measured."""
    from fusedmix.analysis import design_curves

    return _theory("theory-designs.csv", design_curves)


def theory_unbounded() -> str:
    """The mixed loss for λ outside [0, 1]."""
    from fusedmix.analysis import unbounded

    return _theory("theory-unbounded.csv", unbounded)


def _theory(name: str, figure: Any) -> str:
    """The table that a command of fusedmix.analysis prints, from its committed rows."""
    found, types = _rows(name), get_type_hints(figure.Row)
    rows = [figure.Row(**{f.name: _of_type(row[f.name], types[f.name]) for f in fields(figure.Row)}) for row in found]
    return f"{figure.table(rows)}\n\n{_source('python -m benchmarks.theory', found[0])}\n"


def _of_type(text: str, kind: Any) -> Any:
    """A value of a CSV; an empty one is None."""
    if kind in (str, int):
        return kind(text)
    return float(text) if text else None


# ---- docs/accuracy.md ------------------------------------------------------------------------------------------------


def accuracy() -> str:
    """What each method does to a small network."""
    from benchmarks import accuracy as of
    from fusedmix.demo.train import Run

    source = _source("python -m benchmarks.accuracy", _rows("accuracy.csv")[0])
    runs = report.read(RESULTS / "accuracy.csv", Run)
    what = f"{len({run.seed for run in runs})} trainings of {runs[0].epochs} epochs each; seconds: {_SPREAD}"
    return "\n".join(f"{table}\n\n{what}.\n{source}\n" for table in of.tables(runs))


# ---- documents -------------------------------------------------------------------------------------------------------

DOCUMENTS: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"gpu-train-step": gpu_train_step, "cpu-mix": cpu_mix},
    PERFORMANCE: {
        "gpu-train-step-all": gpu_train_step_all,
        "gpu-mix": gpu_mix,
        "cpu-mix-all": cpu_mix_all,
        "cpu-host": cpu_host,
        "cpu-fmix": cpu_fmix,
        "cpu-fmix-all": cpu_fmix_all,
        "cpu-loss": cpu_loss,
        "cpu-loss-all": cpu_loss_all,
        "cpu-methods": cpu_methods,
        "cpu-puzzle": cpu_puzzle,
        "cpu-fallback": cpu_fallback,
        "first-use": first_use,
        "cpu-bench": cpu_bench,
        "cpu-train-step": cpu_train_step,
        "cpu-data-loader": cpu_data_loader,
        "input-step-all": input_step_all,
        "cpu-targets": cpu_targets,
        "gpu": gpu,
    },
    ONE_PASS: {"input-step": input_step},
    SEGMENTATION: {"cpu-pixel-loss": cpu_pixel_loss},
    ANALYSIS: {
        "theory-examples": theory_examples,
        "theory-coefficients": theory_coefficients,
        "theory-moons": theory_moons,
        "theory-designs": theory_designs,
        "theory-unbounded": theory_unbounded,
    },
    ACCURACY: {"accuracy": accuracy},
}


def _after(process: dict[str, float], step: str, before: str) -> float:
    return round(process[f"{step}_s"] - process[f"{before}_s"], 2)


def _rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    if rows[0]["commit"].endswith("-dirty"):
        raise NoResultsError(f"There are no results: `{name}` was measured with changes that are in no commit.\n")
    return rows


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in ("provider", "call", "method", "pairing", "per", "share"))


# ---- cells, and what stands below a table ----------------------------------------------------------------------------

_SPREAD = "medians (p20 to p80)"


def _timing(row: dict[str, str]) -> Timing:
    """The times of a row."""
    times = {name: float(row[name]) for name in ("median_us", "p20_us", "p80_us")}
    return Timing(row["measure"], row["provider"], row["call"], **times)


def _time(row: dict[str, str]) -> str:
    """In milliseconds."""
    timing = _timing(row)
    return f"{report.milliseconds(timing)}{report.mark(timing)}"


def _microseconds(row: dict[str, str]) -> str:
    timing = _timing(row)
    return f"{timing.median_us:.0f} µs ({timing.p20_us:.0f} to {timing.p80_us:.0f}){report.mark(timing)}"


def _ratio(theirs: dict[str, str], ours: dict[str, str]) -> str:
    """Their time over ours, if both can be believed."""
    believed = not any(report.mark(_timing(row)) for row in (theirs, ours))
    return f"{float(theirs['median_us']) / float(ours['median_us']):.1f}" if believed else ""


def _note(rows: Sequence[dict[str, str]]) -> str:
    """What marks mean, if there are any."""
    return report.busy([*map(_timing, rows)])


def _source(command: str, environment: dict[str, str]) -> str:
    """Where a table comes from."""
    commit = environment["commit"]
    since = "; the kernels have changed since" if differs(commit, _kernels(command)) else ""
    return (
        f"*`{command}` on {environment['device']}, torch {environment['torch']}, commit {commit}, "
        f"{environment['date'][:10]}{since}.*"
    )


def _kernels(command: str) -> tuple[str, ...]:
    """The folders of the kernels that a command times."""
    if re.search(r"\.(accuracy|theory|first_use)\b", command):
        return ()
    if "gpu" in command or "cuda" in command:
        return ("csrc/include", "csrc/cuda", "fusedmix/backends/triton")
    if command.endswith(".fallback"):
        return ("fusedmix/backends/reference.py",)
    return ("csrc/include", "csrc/host", "csrc/cpu")


@functools.cache
def differs(commit: str, folders: tuple[str, ...]) -> bool | None:
    """Whether files are not what they were at a commit; None where there is no history to ask."""
    if not folders:
        return False
    done = subprocess.run(["git", "diff", "--quiet", commit, "--", *folders], cwd=ROOT, capture_output=True)
    return {0: False, 1: True}.get(done.returncode)


# ---- writing ---------------------------------------------------------------------------------------------------------


def made(table: Callable[[], str]) -> str:
    """A table, or why there is none."""
    try:
        return table()
    except NoResultsError as reason:
        return str(reason)


def filled(document: Path) -> str:
    """The text of a document with every table in its place."""
    text = document.read_text(encoding="utf-8")
    for name, table in DOCUMENTS[document].items():
        parts = re.split(_PLACE.format(name=name), text, flags=re.DOTALL)
        assert len(parts) == 4, f"{name} has no place in {document.name}, or several"
        before, opening, closing, after = parts
        text = before + opening + made(table) + closing + after
    return text


def main() -> int:
    arguments = argparse.ArgumentParser(description="Writes the tables of the documents, made from the results.")
    arguments.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a table differs")
    given = arguments.parse_args()
    for document in DOCUMENTS:
        text = filled(document)
        if not given.check:
            document.write_text(text, encoding="utf-8")
        elif document.read_text(encoding="utf-8") != text:
            print(f"{document.name} differs from the results: python -m benchmarks.tables")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
