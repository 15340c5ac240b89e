"""The machine instructions of the CUDA kernels: of what nvcc has built, so that no GPU is needed.

    python -m benchmarks.instructions FILE... [--out TABLE]

FILE is a library, an object, or a cubin; the table is printed, or written as the committed one is (benchmarks/results/
cuda-instructions.csv, of every architecture that is built ahead; tests/test_instructions.py says how it is made anew).

An instruction counts once, however often it runs. What a vector costs that a thread of a mixing kernel writes is how
many instructions there are, divided by how many vectors they are for: in a loop those of a turn, elsewhere all of the
thread. `Share` has these numbers. Stores would not do to divide by: nvcc copies them into branches. What such a kernel
has for targets, which other blocks write, is counted apart, and of one that finishes a batch what it has for vectors
that holes touch: by the lines of source that nvcc notes if it is told to (-lineinfo).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import RESULTS
from fusedmix.backends import native
from fusedmix.methods import Families

TABLE = RESULTS / "cuda-instructions.csv"

# ---- What is known of a kernel by its name ---------------------------------------------------------------------------

# Those that mix (csrc/cuda/mix_kernel.h) are NAME<type, elements of a vector, families, ...>.
MIXING = ("each_kernel", "pairs_kernel", "roll_kernel", "tile_kernel")
BYTES = {"float": 4, "double": 8, "fusedmix::Half": 2, "fusedmix::BFloat16": 2, "unsigned short": 2, "unsigned char": 1}
# What these are compiled for, and how many instructions a vector of 4-byte, 2-byte, 1-byte elements may then take.
SETS = {
    Families.CONSTANTS: "constants",
    Families.CUTS: "CutMix",
    Families.CONSTANTS | Families.CUTS | Families.BOXES: "boxes",
    Families.CONSTANTS | Families.GAUSSIANS: "Gaussians",
    Families.CONSTANTS | Families.CUTS | Families.BOXES | Families.GAUSSIANS: "formulas",
    Families.STORED | Families.LEVELS: "stored",
    Families(255): "all",  # kAnySet
}
BOUNDS = {
    "constants": {4: 140, 2: 175, 1: 265},
    "CutMix": {4: 185, 2: 230, 1: 230},
    "boxes": {4: 230, 2: 305, 1: 435},
    "Gaussians": {4: 300, 2: 425, 1: 660},
    "formulas": {4: 365, 2: 505, 1: 775},
    "all": {4: 365, 2: 505, 1: 775},
}


# The one that finishes vectors (csrc/cuda/finish_kernel.h) is NAME<type, pixels, channels, families, draws, ...>. Of
# bytes of three channels, how many instructions it may take for each 16 bytes of a sample: where nothing is drawn, and
# where samples may be flipped and erased. The stores of all three types that a batch may become are counted.
FINISHING = "finish_vectors_kernel"
FINISH_BOUNDS = {"constants": (240, 335), "boxes": (280, 350), "all": (520, 590)}


class Share(NamedTuple):
    """How many vectors the instructions of a thread are for."""

    once: int  # those outside of loops
    before: int  # those in loops before the barrier
    after: int  # and after it


def share(name: str, masks: str, size: int) -> Share:
    """Of a kernel that mixes elements of so many bytes, by the numbers that csrc/cuda/mix_kernel.h calls so."""
    ahead = {"CutMix": 2, "stored": 1, "formulas": 1, "all": 1}.get(masks, 4)  # kAheadOf
    if name in ("each_kernel", "pairs_kernel") and masks in ("formulas", "all"):
        return Share(2, 1, 1)  # one after the other
    if name in ("each_kernel", "pairs_kernel"):
        return Share(2, 2, 2)  # kEachSamples, and both of a pair; no loop over samples
    # A thread of a column has four samples or more, but in small batches.
    if name == "roll_kernel":
        return Share(4, 4, 2 if masks == "stored" else ahead)
    return Share(4, ahead, 1 if (masks, size) == ("Gaussians", 1) else 2)  # kAfter


APART = ("targets.h", "finish_pixel.h", "pixel_access.h")  # in csrc/cuda: what is counted apart

# What no kernel has, and what one that mixes has at most.
LIMITS = {"stack": 0, "local": 0}
MIXING_LIMITS = {"instructions": 400 * len(Families), "targets": 150}
WORDS = {
    "stack": "bytes of stack",
    "local": "accesses to local memory",
    "instructions": "instructions",
    "targets": "instructions for targets",
    "per_vector": "instructions a vector",
}

# Those that take of several samples (csrc/cuda/with_kernel.h, paste_kernel.h, blend_kernel.h).
GATHER_LIMITS = {
    "with_kernel": {"instructions": 1500},
    "paste_kernel": {"instructions": 1500},
    "blend_kernel": {"instructions": 1000},
}

# Those of the loss of label maps (csrc/cuda/pixel_losses.cu) are NAME<compute type>. How many vectors of float32 logits
# a turn through the classes has (kPlanes), and how many instructions there may be for each of them, without what is
# done for pixels one by one: of all three types, of which a turn takes one. While memory reads a vector 140 are issued,
# while it reads and writes one 280.
PIXEL_VECTORS = 4
PIXEL_LIMITS = {
    "pixel_cross_entropy_kernel<float>": {"per_vector": 125},
    "pixel_gradient_kernel<float>": {"per_vector": 200},
}

# A sampler of one family (csrc/cuda/sample.cu), by how partners are found. Where they are random other blocks do that.
SAMPLER = re.compile(r"sample_kernel<(?:fusedmix::)?(\w+), \(Partners\)(\d)>")
SAMPLER_LIMITS = {0: {"instructions": 1500}, 1: {"instructions": 1800}}  # by formula, random
ALL_FAMILIES = "Every"


class Exempt(NamedTuple):
    """Kernels that may exceed limits: by how much, and why."""

    kernels: str  # a pattern for "sm_90 each_kernel<...>"
    limits: dict[str, int]
    reason: str


EXEMPT = (
    Exempt(
        r"sm_\d+ (?!with_)\w+<.*, 255(, false)?>",
        {"per_vector": 140 * len(Families), "stack": 8, "local": 2},
        "all families: the code of each, of which a mask takes one. The bound did not know stored and soft masks, discs"
        " and grids; constants, boxes and Gaussians among each other have kernels of their own, within it",
    ),
    Exempt(
        r"sm_(80|90|100) sample_kernel<fusedmix::(Smooth|Grid), .*",
        {"instructions": 2400},
        "an equation and sums of two kinds (SmoothMix), a permutation of cells and integer divisions (GridMix)",
    ),
    Exempt(
        r"sm_120 sample_kernel<fusedmix::.*",
        {"instructions": 3600},
        "after each instruction of float64 ptxas puts some three NOP",
    ),
    Exempt(
        r"sm_(100|120) tile_kernel<unsigned char, 16, 1>",
        {"per_vector": 280},
        "constants, of bytes: for newer GPUs nvcc has more branches around the loops, which are the same",
    ),
)

# ---- What is known of an architecture: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"

REGISTERS = 65536  # of a multiprocessor, all of them
RESERVED = 1024  # bytes of shared memory that each block takes beside its own


@dataclass(frozen=True)
class Multiprocessor:
    threads: int
    blocks: int
    shared: int  # bytes


MULTIPROCESSORS = {
    "80": Multiprocessor(2048, 32, 164 * 1024),
    "86": Multiprocessor(1536, 16, 100 * 1024),
    "89": Multiprocessor(1536, 24, 100 * 1024),
    "90": Multiprocessor(2048, 32, 228 * 1024),
    "100": Multiprocessor(2048, 32, 228 * 1024),
    "120": Multiprocessor(1536, 24, 100 * 1024),
}


def blocks_that_fit(arch: str, threads: int, registers: int, shared: int) -> int:
    """How many blocks a multiprocessor holds at a time, if they are given no dynamic shared memory."""
    limit = MULTIPROCESSORS[arch]
    warps = -(-threads // 32)
    # Registers are handed out to warps by 256, and each quarter of a multiprocessor has its own.
    of_quarter = REGISTERS // 4 // max(256, -(-registers * 32 // 256) * 256)
    of_shared = limit.shared // (-(-shared // 128) * 128 + RESERVED)
    return min(limit.threads // 32 // warps, 4 * of_quarter // warps, of_shared, limit.blocks)


# ---- Counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """A kernel, as it is for one architecture. Bytes of stack and of shared memory are static ones."""

    arch: str
    kernel: str
    masks: str  # that it has code for; empty: it does not mix
    threads: int  # of a block
    instructions: int
    targets: int  # of them, for targets; of a kernel that finishes, for what holes touch
    in_loops: int  # of the others, those of loops before the barrier
    after: int  # and after it
    per_vector: int  # rounded up
    branches: int
    loads: int  # of 16 bytes, of global memory
    stores: int
    registers: int
    stack: int
    local: int  # instructions that access local memory: what is spilled, and arrays
    shared: int
    blocks: int  # that fit on a multiprocessor
    reason: str  # why it exceeds a limit

    @property
    def name(self) -> str:
        return f"sm_{self.arch} {self.kernel}"

    @property
    def own_limits(self) -> dict[str, int]:
        """The most that it may have, whatever exempts it."""
        name, _, parameters = self.kernel.rstrip(">").partition("<")
        if (sampler := SAMPLER.fullmatch(self.kernel)) and sampler[1] != ALL_FAMILIES:
            return LIMITS | SAMPLER_LIMITS[int(sampler[2])]
        if self.kernel in PIXEL_LIMITS:
            return LIMITS | PIXEL_LIMITS[self.kernel]
        if name == FINISHING and parameters.startswith("unsigned char, 16, 3, "):
            draws = parameters.split(", ")[4] == "true"
            return LIMITS | {"per_vector": FINISH_BOUNDS[self.masks][draws]}
        if name not in MIXING:
            return LIMITS | GATHER_LIMITS.get(name, {})
        limits = LIMITS | MIXING_LIMITS
        # Not of stored masks, nor of float64 and the adjoint, which computes in it.
        bound = BOUNDS.get(self.masks, {}).get(BYTES[parameters.split(", ")[0]])
        if bound is not None and not parameters.endswith("true"):
            limits["per_vector"] = bound
        return limits


class ToolError(RuntimeError):
    """A tool of NVIDIA's is not here, or cannot read a file."""


def _tool(name: str) -> str:
    """A disassembler: in the triton package, which brings them, or beside nvcc."""
    found = importlib.util.find_spec("triton")
    folders = [Path(place, "backends/nvidia/bin") for place in (found and found.submodule_search_locations) or ()]
    with contextlib.suppress(native.BuildError):
        folders.append(Path(native._nvcc()).parent)
    for folder in (*map(str, folders), None):
        if path := shutil.which(name, path=folder):
            return path
    raise ToolError(f"{name} is not found: it comes with the triton package, and with CUDA")


def check_tools() -> None:
    """Raises ToolError if something that is needed is not here."""
    for name in ("cuobjdump", "nvdisasm"):
        _tool(name)


def _run(*command: str | Path, folder: Path | None = None, text: str | None = None) -> str:
    done = subprocess.run(command, cwd=folder, input=text, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode != 0:
        raise ToolError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def extract(file: Path, folder: Path) -> list[Path]:
    """Writes the cubins of a library or an object, as NAME.sm_90.cubin."""
    names = re.findall(r"^ELF file .*: (\S+)", _run(_tool("cuobjdump"), "-lelf", file), re.MULTILINE)
    # The linker's own, without a kernel, has the names of all others in its name, which no file may have.
    kept = {name.rpartition(".sm_")[2] for name in names if len(name) <= 255}
    for of_arch in sorted(kept):
        _run(_tool("cuobjdump"), "-xelf", f".sm_{of_arch}", file, folder=folder)
    if not (made := sorted(folder.glob("*.cubin"))):
        raise ToolError(f"{file} holds no code of a GPU")
    return made


def read(files: Iterable[Path]) -> tuple[list[Count], str]:
    """Counts of all kernels, and the version of ptxas that made them ("several" if files differ).

    Raises:
        ToolError: the disassemblers are not here, or find no kernels in a file.
    """
    counts: list[Count] = []
    versions = set()
    for file in map(Path.absolute, files):
        with tempfile.TemporaryDirectory() as scratch:
            for cubin in [file] if file.suffix == ".cubin" else extract(file, Path(scratch)):
                sizes = _run(_tool("cuobjdump"), "-elf", "-res-usage", cubin)
                code = _run(_tool("nvdisasm"), "-c", "-gi", cubin)
                made, version = parse(sizes, code)
                counts += made
                versions.add(version)
    counts.sort(key=lambda count: (int(count.arch), count.kernel))
    return counts, versions.pop() if len(versions) == 1 else "several"


def parse(sizes: str, code: str) -> tuple[list[Count], str]:
    """The same, of what is said of one cubin: by cuobjdump (-elf -res-usage) and by nvdisasm (-c -gi)."""
    arch = re.search(r" ELF: .*\bsm=(\d+)", sizes)[1]
    version = re.search(r"Tool Version:.* V([\d.]+)", sizes)
    threads = {}
    for symbol, notes in re.findall(r"^\.nv\.info\.(\S+)\n(.*?)(?=^\.)", sizes, re.MULTILINE | re.DOTALL):
        if most := re.search(r"EIATTR_MAX_THREADS\n.*\n\s+Value:\s+(\w+) (\w+) (\w+)", notes):
            threads[symbol] = math.prod(int(word, 16) for word in most.groups())
    used = {
        symbol: {word: int(n) for word, n in re.findall(r"(\w+):(\d+)", line)}
        for symbol, line in re.findall(r"^ Function (\S+):\n\s+(REG:.*)", sizes, re.MULTILINE)
    }
    bodies = dict(re.findall(r"^\.text\.(\S+):\n(.*?)(?=^\t\.section|\Z)", code, re.MULTILINE | re.DOTALL))
    names = _demangled(list(bodies))
    return [
        _count(arch, names[symbol], _instructions(body), threads[symbol], used[symbol])
        for symbol, body in bodies.items()
    ], version[1] if version else "unknown"


class Instruction(NamedTuple):
    opcode: str
    modifiers: tuple[str, ...]
    apart: bool
    in_loop: bool


def _instructions(body: str) -> list[Instruction]:
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    loops = []
    apart = marked = False
    for line in body.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(found)
        elif mark := re.match(r"\s+//## File (.*)", line):
            # Several lines before an instruction: where it stands, and where that is inlined.
            apart = (marked and apart) or any(f'/{name}"' in mark[1] for name in APART)
            marked = True
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)(.*)", line):
            opcode, *modifiers = instruction[1].split(".")
            to = re.search(r"`\((\.L\w+)\)", instruction[2])
            if opcode == "BRA" and to and labels.get(to[1], len(found)) < len(found):
                loops.append((labels[to[1]], len(found)))
            found.append(Instruction(opcode, tuple(modifiers), apart, in_loop=False))
            marked = False
    while found and found[-1].opcode in ("BRA", "NOP"):  # what fills a kernel up behind its end
        found.pop()
    return [
        instruction._replace(in_loop=any(first <= n <= last for first, last in loops))
        for n, instruction in enumerate(found)
    ]


def _count(arch: str, kernel: str, instructions: list[Instruction], threads: int, used: dict[str, int]) -> Count:
    def number(*names: str, wide: bool = False) -> int:
        return sum(i.opcode in names and (not wide or "128" in i.modifiers) for i in instructions)

    name, _, parameters = kernel.rstrip(">").partition("<")
    mixes, finishes = name in MIXING, name == FINISHING
    masks = SETS[Families(int(parameters.split(", ")[3 if finishes else 2]))] if mixes or finishes else ""
    of_pixels = kernel in PIXEL_LIMITS
    mixing = [i for i in instructions if (mixes or finishes or of_pixels) and not i.apart]
    wait = next((n for n, i in enumerate(mixing) if i.opcode == "BAR"), len(mixing))
    before, after = (sum(i.in_loop for i in part) for part in (mixing[:wait], mixing[wait:]))
    per_vector = Fraction()
    if mixes:
        of = share(name, masks, BYTES[parameters.split(", ")[0]])
        numbers = (len(mixing) - before - after, before, after)
        per_vector = sum((Fraction(*pair) for pair in zip(numbers, of, strict=True)), Fraction())
    if finishes:  # each instruction is for all channels
        per_vector = Fraction(len(mixing), int(parameters.split(", ")[2]))
    if of_pixels:
        per_vector = Fraction(before + after, PIXEL_VECTORS)
    shared = used["SHARED"]
    if int(arch) >= 90:  # of these cuobjdump counts what is reserved, where anything is used
        shared = max(0, shared - RESERVED)
    return Count(
        arch=arch,
        kernel=kernel,
        masks=masks,
        threads=threads,
        instructions=len(instructions),
        targets=len(instructions) - len(mixing) if mixes or finishes else 0,
        in_loops=before,
        after=after,
        per_vector=math.ceil(per_vector),
        branches=number("BRA", "BRX", "JMP", "JMX", "CALL"),
        loads=number("LD", "LDG", wide=True),
        stores=number("ST", "STG", wide=True),
        registers=used["REG"],
        stack=used["STACK"],
        local=number("LDL", "STL"),
        shared=shared,
        blocks=blocks_that_fit(arch, threads, used["REG"], shared),
        reason="; ".join(exempt.reason for exempt in EXEMPT if re.fullmatch(exempt.kernels, f"sm_{arch} {kernel}")),
    )


def _demangled(symbols: Sequence[str]) -> dict[str, str]:
    """Their names in C++, without namespaces of our own and without parameters."""
    said = _run("c++filt", text="\n".join(symbols))
    return {symbol: short(name) for symbol, name in zip(symbols, said.splitlines(), strict=True)}


def short(name: str) -> str:
    """The name of a kernel alone."""
    name = re.sub(r"^void |fusedmix::cuda::|\(anonymous namespace\)::", "", name)
    return re.sub(r"\((?!\w+\)\d)[^()]*\)$", "", name)  # the last parentheses, unless they are a cast: (Way)3


# ---- The table -------------------------------------------------------------------------------------------------------


def write(path: Path, counts: Sequence[Count], version: str) -> None:
    """A line with the compiler, then CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# ptxas {version}\n")
        writer = csv.DictWriter(file, [field.name for field in fields(Count)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, counts))


def committed(path: Path = TABLE) -> tuple[list[Count], str]:
    """What was written."""
    with path.open(newline="", encoding="utf-8") as file:
        version = file.readline().removeprefix("# ptxas ").strip()
        texts = ("arch", "kernel", "masks", "reason")
        rows = [{k: v if k in texts else int(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [Count(**row) for row in rows], version


def faults(counts: Iterable[Count]) -> Iterator[str]:
    """What is beyond a limit."""
    for count in counts:
        limits = dict(count.own_limits)
        for exempt in EXEMPT:
            if re.fullmatch(exempt.kernels, count.name):
                limits |= exempt.limits
        for field, limit in limits.items():
            if (found := getattr(count, field)) > limit:
                yield f"{count.name}: {found} {WORDS[field]}, at most {limit}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, help="write the table there")
    given = parser.parse_args(arguments)
    try:
        counts, version = read(given.files)
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    if given.out is not None:
        write(given.out, counts, version)
    else:
        columns = [field.name for field in fields(Count)]
        rows = [columns, *([str(getattr(count, column)) for column in columns] for count in counts)]
        widths = [max(len(row[n]) for row in rows) for n in range(len(columns))]
        for row in rows:
            print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
    for fault in (found := list(faults(counts))):
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
