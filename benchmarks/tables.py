"""The README's tables, made from the committed results: no figure in it is typed.

python -m benchmarks.tables            # writes them into README.md
python -m benchmarks.tables --check    # exit status 1: one of them differs from what its file says
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.common import RESULTS, ROOT
from fusedmix.bench.results import markdown

README = ROOT / "README.md"
_PLACE = r"(<!-- table: {name} -->\n).*?(<!-- end of table -->)"


def cpu_mix() -> str:
    """Times of mixing on a CPU, as ratios to a copy of the batch."""
    rows = _rows("cpu-mix.csv")
    of_copy = {_key(row): float(row["copy_ratio"]) for row in rows if row["measure"] == "wall"}

    def ratio(*key: Any) -> str:
        return f"{of_copy[key]:.2f}"

    def line(method: str, share: str, label: str) -> tuple[str, ...]:
        found = [ratio("fusedmix", "mix_", method, pairing, "batch", share) for pairing in ("roll", "flip")]
        found.append(ratio("fusedmix", "mix_", method, "roll", "sample", share))
        found.append(ratio("fusedmix", "mix", method, "roll", "batch", share))
        peer = ratio("torchvision", "module", method, "roll", "batch", "1") if method in ("MixUp", "CutMix") else ""
        return (label, *found, peer)

    boxes = sorted({row["share"] for row in rows if row["method"] == "CutMix" and row["share"] != "1"})
    lines = [line(method, "1", method) for method in ("MixUp", "HMix", "GMix")]
    lines += [line("CutMix", share, f"CutMix, box {float(share):.0%}") for share in boxes]
    copy, clone = of_copy["torch", "copy", "", "", "", "1"], of_copy["torch", "clone", "", "", "", "1"]
    lines.append(("`x.clone()`", "", "", "", f"{clone / copy:.2f}", ""))
    table = markdown(
        ("in copies of the batch", "in place, roll", "flip", "per sample", "out of place", "torchvision"), lines
    )
    host = {(row["method"], row["provider"]): float(row["least_us"]) for row in rows if row["measure"] == "host"}
    times = "; ".join(
        f"`{method}` {host[method, 'fusedmix']:.0f} µs (torchvision: {host[method, 'torchvision']:.0f} µs)"
        for method in ("MixUp", "CutMix")
    )
    shape = rows[0]["shape"].replace("x", "×")
    return (
        f"{table}\n\nfloat32, {shape}, 2 threads; 1 is `out.copy_(x)`, {float(rows[0]['median_us']) / 1e3:.1f} ms. "
        f"A whole call of a module on a 4×3×8×8 batch: {times}.\n{_source('python -m benchmarks.cpu_mix', rows[0])}\n"
    )


def cpu_fmix() -> str:
    """Times of FMix's masks on a CPU, beside the NumPy pipeline."""
    rows = _rows("cpu-fmix.csv")
    masks = {(row["provider"], row["shape"]): float(row["median_us"]) for row in rows if row["call"] == "mask"}
    shapes = [row["shape"] for row in rows if row["call"] == "mask" and row["provider"] == "fusedmix"]
    lines = [
        (
            shape.replace("x", "×"),
            f"{masks['fusedmix', shape]:.0f}",
            f"{masks['numpy', shape]:.0f}",
            f"{masks['numpy', shape] / masks['fusedmix', shape]:.0f}",
        )
        for shape in shapes
    ]
    table = markdown(("µs a mask, one thread", "fusedmix", "NumPy", "ratio"), lines)
    steps = {(row["method"], row["per"]): row for row in rows if row["call"] == "module"}
    times = ", ".join(
        f"{method} {float(steps[method, 'sample']['median_us']) / 1e3:.0f} ms" for method in ("MixUp", "CutMix", "FMix")
    )
    shape = steps["FMix", "sample"]["shape"].replace("x", "×")
    return (
        f"{table}\n\nA whole step in place on {shape} float32, per sample, 2 threads: {times}.\n"
        f"{_source('python -m benchmarks.cpu_fmix', rows[0])}\n"
    )


def cpu_loss() -> str:
    """Times of the label losses on a CPU, forwards and backwards, beside PyTorch's on dense targets."""
    rows = [row for row in _rows("cpu-loss.csv") if row["shape"] == "256x21841"]
    times = {(row["call"], row["dtype"], row["provider"]): float(row["median_us"]) / 1e3 for row in rows}
    lines = [
        (
            f"`{call}`, {dtype}",
            *(f"{times[call, dtype, provider]:.0f}" for provider in ("fusedmix", "torch")),
            f"{times[call, dtype, 'torch'] / times[call, dtype, 'fusedmix']:.1f}",
        )
        for call, dtype, provider in times
        if provider == "fusedmix"
    ]
    table = markdown(("ms, 256×21841 logits, 2 threads", "fusedmix", "dense targets", "ratio"), lines)
    return f"{table}\n\n{_source('python -m benchmarks.cpu_loss', rows[0])}\n"


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


TABLES: dict[str, Callable[[], str]] = {
    "cpu-mix": cpu_mix,
    "cpu-fmix": cpu_fmix,
    "cpu-loss": cpu_loss,
    "first-use": first_use,
}


def _after(process: dict[str, float], step: str, before: str) -> float:
    return round(process[f"{step}_s"] - process[f"{before}_s"], 2)


def _rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in ("provider", "call", "method", "pairing", "per", "share"))


def _source(command: str, environment: dict[str, str]) -> str:
    """Where a table comes from."""
    return (
        f"*`{command}` on {environment['device']}, torch {environment['torch']}, commit {environment['commit']}, "
        f"{environment['date'][:10]}.*"
    )


def filled(text: str) -> str:
    """A document with every table in its place."""
    for name, table in TABLES.items():
        pattern = _PLACE.format(name=name)
        parts = re.split(pattern, text, flags=re.DOTALL)
        assert len(parts) == 4, f"{name} has no place in {README.name}, or several"
        before, opening, closing, after = parts
        text = before + opening + table() + closing + after
    return text


def main(arguments: list[str]) -> int:
    text = README.read_text(encoding="utf-8")
    if "--check" in arguments:
        return int(filled(text) != text)
    README.write_text(filled(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
