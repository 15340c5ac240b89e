"""The tables of README.md and docs/analysis.md, made from the committed results: no figure in them is typed.

python -m benchmarks.tables            # writes them there
python -m benchmarks.tables --check    # exit status 1: one of them differs from what its file says
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from benchmarks.common import RESULTS, ROOT, markdown

README = ROOT / "README.md"
ANALYSIS = ROOT / "docs" / "analysis.md"
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


TABLES: dict[str, Callable[[], str]] = {
    "cpu-mix": cpu_mix,
    "cpu-fmix": cpu_fmix,
    "cpu-loss": cpu_loss,
    "first-use": first_use,
}
THEORY: dict[str, Callable[[], str]] = {
    "theory-examples": theory_examples,
    "theory-coefficients": theory_coefficients,
    "theory-moons": theory_moons,
}


def _theory(name: str, figure: Any) -> str:
    """The table that a command of fusedmix.analysis prints, from its committed rows."""
    found, types = _rows(name), get_type_hints(figure.Row)

    def value(text: str, kind: Any) -> Any:
        if kind in (str, int):
            return kind(text)
        return float(text) if text else None

    rows = [figure.Row(**{f.name: value(row[f.name], types[f.name]) for f in fields(figure.Row)}) for row in found]
    return f"{figure.table(rows)}\n\n{_source('python -m benchmarks.theory', found[0])}\n"


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


def filled(text: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """A document with every table in its place."""
    for name, table in tables.items():
        pattern = _PLACE.format(name=name)
        parts = re.split(pattern, text, flags=re.DOTALL)
        assert len(parts) == 4, f"{name} has no place in the document, or several"
        before, opening, closing, after = parts
        text = before + opening + table() + closing + after
    return text


def main(arguments: list[str]) -> int:
    differ = False
    for path, tables in ((README, TABLES), (ANALYSIS, THEORY)):
        text = path.read_text(encoding="utf-8")
        made = filled(text, tables)
        differ |= made != text
        if "--check" not in arguments:
            path.write_text(made, encoding="utf-8")
    return int(differ and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
