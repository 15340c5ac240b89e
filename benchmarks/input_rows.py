"""The cases and the rows of input_step, its table, and what is asked of its times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fusedmix.bench.report import busy, mark, milliseconds
from fusedmix.bench.results import Check, markdown
from fusedmix.bench.timing import Timing

PEERS = ("torchvision", "timm", "torch.compile")
LOADER = "fusedmix, as timm's loader"
# Of the float32 batches of a CPU, MixUp or CutMix per batch: how many times as long a peer takes, at least.
BESIDE_PEERS = {"torchvision": 6.0, "torch.compile": 1.5}
# Of the bfloat16 batches of a GPU, in copies of as many bytes, at most.
COPIES, RANDOM_COPIES, ERASED_COPIES = 1.15, 1.25, 1.35


@dataclass(frozen=True)
class Case:
    """What is made of a batch of bytes."""

    method: str  # "": nothing is mixed
    per: str = "batch"
    pairing: str = "roll"
    input_format: str = "NCHW"
    dtype: str = "float32"  # of the new batch
    layout: str = "contiguous"  # of the new batch
    erased: bool = False  # flipped and erased too, each sample by chance

    def __str__(self) -> str:
        words = [self.method or "nothing mixed"]
        words += ["per sample"] if self.per == "sample" else []
        words += ["random partners"] if self.pairing == "random" else []
        words += ["flipped, erased"] if self.erased else []
        layout = " channels_last" if self.layout == "channels_last" else ""
        return ", ".join([*words, f"{self.input_format} to {self.dtype}{layout}"])


CASES = (
    Case("MixUp"),
    Case("CutMix"),
    Case("MixUp", dtype="bfloat16"),
    Case("CutMix", dtype="bfloat16", layout="channels_last"),
    Case("MixUp", "sample", "random", dtype="bfloat16"),
    Case("CutMix", dtype="bfloat16", erased=True),
    Case("CutMix", "sample"),
    Case("MixUp", "sample"),
    Case("MixUp", input_format="NHWC"),
    Case("CutMix", input_format="NHWC", dtype="bfloat16", layout="channels_last"),
    Case("CutMix", erased=True),
    Case(""),
)
QUICK = (Case("MixUp"), Case("CutMix", "sample", input_format="NHWC", dtype="bfloat16", erased=True))


@dataclass
class InputTiming(Timing):
    """A step from bytes to the batch of a model by one contender (`call`: "step"), or a copy of as many bytes."""

    input_format: str = "NCHW"
    erased: bool = False
    images_per_s: float = 0.0
    failed: str = ""  # why there are no figures

    @property
    def case(self) -> Case:
        return Case(**{field.name: getattr(self, field.name) for field in fields(Case)})

    @property
    def name(self) -> str:
        """The peer, or the backend of ours."""
        return self.backend or self.provider


def by_case(rows: Iterable[InputTiming]) -> dict[Case, list[InputTiming]]:
    """The rows of each case without its copies, ours first."""
    found: dict[Case, list[InputTiming]] = {}
    for row in rows:
        if row.call == "step":
            found.setdefault(row.case, []).append(row)
    return found


def input_table(rows: Sequence[InputTiming]) -> str:
    """A line for each case: ours by the backend that is chosen in images a second, milliseconds and copies of as many
    bytes; the others in images a second and as multiples of our time."""
    cases = by_case(rows)
    names = dict.fromkeys(row.name for of_case in cases.values() for row in of_case[1:])
    columns = sorted(names, key=(*PEERS, LOADER, *names).index)
    lines = []
    for case, (ours, *beside) in cases.items():
        named = {row.name: row for row in beside}
        cells: list[str] = [str(case), _rate(ours)]
        cells += ["", ""] if ours.failed else [milliseconds(ours), f"{ours.copy_ratio:.2f}"]
        lines.append((*cells, *(_beside(named.get(name), ours) for name in columns)))
    header = ("images a second", "fusedmix", "ms", "× copy", *columns)
    return markdown(header, lines) + busy(rows)


def _rate(row: InputTiming) -> str:
    if row.failed:
        return "differs" if row.failed.startswith("AssertionError") else "failed"
    return f"{row.images_per_s:.0f}{mark(row)}"


def _beside(row: InputTiming | None, ours: InputTiming) -> str:
    """No ratio where one of the two was not shown to do the same, or did not run."""
    if row is None:
        return ""
    ratio = "" if row.failed or ours.failed else f" ({row.median_us / ours.median_us:.1f}×)"
    return _rate(row) + ratio


def targets(rows: Sequence[InputTiming]) -> list[Check]:
    """The checks of a run."""
    checks = []
    for case, of_case in by_case(rows).items():
        ours = [row for row in of_case if row.provider == "fusedmix" and not row.failed]
        for row in ours:
            if row.measure != "wall":
                checks += _copies(case, row)
            elif case in (Case("MixUp"), Case("CutMix")):
                beside = [peer for peer in of_case if peer.name in BESIDE_PEERS and not peer.failed]
                checks += [_faster(case, row, peer) for peer in beside]
    return checks


def _faster(case: Case, row: InputTiming, peer: InputTiming) -> Check:
    what = f"{row.backend}: {case}, faster than {peer.name}"
    return Check(what, peer.median_us / row.median_us, BESIDE_PEERS[peer.name], "x", at_least=True)


def _copies(case: Case, row: InputTiming) -> list[Check]:
    if case.dtype != "bfloat16":
        return []
    limit = ERASED_COPIES if case.erased else RANDOM_COPIES if case.pairing == "random" else COPIES
    return [Check(f"{row.backend}: {case}", row.copy_ratio, limit, "x copy")]


def row_of(case: Case, measure: str, provider: str, call: str, **more: Any) -> InputTiming:
    """A row without times."""
    same = {field.name: getattr(case, field.name) for field in fields(Case)}
    return InputTiming(measure, provider, call, **same, **more)
