"""What nvcc makes of the CUDA kernels, for every architecture that is built ahead: no GPU is needed to read it.

No kernel has a stack or spills registers, three blocks of each fit on a multiprocessor, and memory moves 128 bits at a
time. The kernels that mix have a table of their own (test_instructions.py). nvcc is the one that builds the backend,
with the flags that build it. What it said is kept by a hash of all that goes into it, in the folder of the shim's
modules (shim_build.py).

Where the library has just been built ahead for all of these, $FUSEDMIX_TEST_NVCC is the folder with the PTX that nvcc
kept (--keep) and, in the file `said`, what it said (-Xptxas=-v): .ci/run compiles the kernels once.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from fusedmix.backends import native

shim_build = pytest.importorskip("shim_build")  # fcntl: not on Windows
pytestmark = pytest.mark.thorough

THREADS = 128  # of a block
BLOCKS = 3  # that must fit on a multiprocessor
REGISTERS = 65536 // (THREADS * BLOCKS) // 8 * 8  # of each thread: they are handed out by eights
STEMS = (
    *("borders", "finish", "fourier", "gathers", "grid_cut", "losses", "pixel_losses", "sample"),
    *("mix", "mix_bfloat16", "mix_float", "mix_float16", "mix_integers"),
)

OTHERS = (
    *("back_kernel", "targets_kernel", "invert_kernel", "mask_kernel", "sample_kernel"),
    *("noise_kernel", "turn_kernel", "rows_kernel", "whole_kernel", "synthesis_kernel", "select_kernel"),
    *("soften_kernel", "finish_kernel", "finish_vectors_kernel", "finish_pixels_kernel", "flips_kernel"),
    *("border_costs_kernel", "label_grid_kernel", "with_kernel", "paste_kernel", "blend_kernel"),
    *("pixel_cross_entropy_kernel", "pixel_sum_kernel", "pixel_gradient_kernel"),
)
# Of a template. Those that finish vectors: of bytes of three channels for three sets of families, two layouts of what
# comes and of what is made, with draws and without; of a channel for five vectors. Those that take of several samples:
# for three vectors of a type, of float32 and float64 for two, of 16-bit integers for one; with another batch, for sets
# of families of 16 bytes.
INSTANCES = {
    "synthesis_kernel": 2,
    "finish_kernel": 2,
    "sample_kernel": 15,
    "finish_vectors_kernel": 3 * 8 + 5,
    "paste_kernel": 14,
    "blend_kernel": 14,
    "with_kernel": 13 + 2 * 4,
    "pixel_cross_entropy_kernel": 2,
    "pixel_gradient_kernel": 2,
}
# Threads of a block, and blocks that must fit on a multiprocessor.
WIDE = {
    "select_kernel": (512, 2),
    "label_grid_kernel": (512, 2),
    "soften_kernel": (512, 1),
    "whole_kernel": (512, 1),
    "synthesis_kernel": (384, 1),
    "finish_vectors_kernel": (256, 2),
    "finish_pixels_kernel": (256, 3),
    "with_kernel": (256, 3),
    "paste_kernel": (256, 3),
    "blend_kernel": (256, 2),
    "pixel_cross_entropy_kernelIf": (256, 4),
    "pixel_cross_entropy_kernelId": (256, 3),
    "pixel_gradient_kernel": (256, 3),
}
MORE = {"finish_kernel": 256, "invert_kernel": 512, "pixel_sum_kernel": 256}  # threads of a block
MIXING = re.compile(r"\d(each|pairs|roll|tile)_kernelI")

# Bytes of the element types, by their names in C++.
TYPES = {"f": 4, "NS_4HalfE": 2, "NS_8BFloat16E": 2, "d": 8}
LOSS_KERNELS = (
    *("cross_entropy_kernel", "binary_cross_entropy_kernel"),
    *("cross_entropy_gradient_kernel", "binary_gradient_kernel"),
)
# By type: how many elements a thread may move at a time.
LOSS_WIDTHS = {"f": (4, 1), "NS_4HalfE": (8, 1), "NS_8BFloat16E": (8, 1), "d": (1,)}


class Loss(NamedTuple):
    """An instance of a kernel of the label losses."""

    kernel: str
    type: str
    width: int

    @property
    def size(self):
        return TYPES[self.type]


LOSSES = [Loss(kernel, name, width) for kernel in LOSS_KERNELS for name, ws in LOSS_WIDTHS.items() for width in ws]


def loss_of(symbol):
    """Which instance a symbol is, or None."""
    found = re.search(rf"\d({'|'.join(LOSS_KERNELS)})I(\w+?)Li(\d+)EE", symbol)
    return found and Loss(found[1], found[2], int(found[3]))


# ---- compiling ------------------------------------------------------------------------------------------------------


@functools.cache
def tools():
    """nvcc and the host compiler, or why there are none."""
    try:
        return native._nvcc(), native._cxx()
    except native.BuildError as error:
        return str(error)


def architectures():
    nvcc, _ = tools()
    known = native._known_archs(nvcc)
    return [arch for arch in native._AHEAD_ARCHS if int(arch) in known]


def command_for(source, flags):
    """As native.build() has it, with the sizes of everything and without the host's half."""
    nvcc, cxx = tools()
    csrc = native._sources()
    command = [nvcc, *flags, *native._gencode(architectures(), native._known_archs(nvcc))]
    command += [f"-I{csrc / 'include'}", f"-I{csrc}"]
    if len(cxx) == 1:
        command.append(f"-ccbin={cxx[0]}")
    if any(Path(nvcc).is_relative_to(folder) for folder in native._pypi_cuda()):
        command += [f"-I{folder / 'include'}" for folder in native._pypi_cuda()]
    return [*command, "-Xptxas=-v", "--keep", "-fatbin", str(source)]


def compiled(source, flags):
    """What nvcc says of a file: {architecture: {kernel: report}}, from the cache or anew."""
    command = command_for(source, flags)
    headers = sorted(path for folder in ("include", "cuda") for path in (native._sources() / folder).rglob("*.h"))
    parts = [native._output(command[0], "--version"), repr(command), *(path.read_text() for path in headers)]
    key = shim_build._hash(*parts, source.read_text(), *map(inspect.getsource, (report_of, accesses_of)))
    kept = shim_build.cache() / f"ptx-{source.stem}-{key}.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=shim_build.cache()) as scratch:
            run = [*command, "--keep-dir", scratch, "-o", str(Path(scratch, "out.fatbin"))]
            done = subprocess.run(run, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(run)}\n{done.stdout}{done.stderr}"
            assert not warnings_of(done.stdout + done.stderr), done.stderr
            report = report_of(done.stdout + done.stderr, [path.read_text() for path in Path(scratch).glob("*.ptx")])
            partial = Path(scratch, "report.json")
            partial.write_text(json.dumps(report))
            partial.replace(kept)
    return json.loads(kept.read_text())


def built_ahead(folder, source):
    """The same, of what nvcc left behind when the library was built."""
    said = (folder / "said").read_text()
    assert not warnings_of(said), warnings_of(said)
    found = report_of(said, [path.read_text() for path in folder.glob(f"{source.stem}.*ptx")])
    # It spoke of the kernels of all files.
    return {arch: {name: kernel for name, kernel in of.items() if "accesses" in kernel} for arch, of in found.items()}


def warnings_of(said):
    """What nvcc's front end warns of: that device code calls a function of the host, which then is left out."""
    return re.findall(r"^.*: warning #.*$", said, re.MULTILINE)


def report_of(said, ptx):
    found = {}
    entry = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    for match in entry.finditer(said):
        symbol, arch = match[1], match[2]
        stack, stores, loads, registers = map(int, match.groups()[2:])
        sizes = {"stack": stack, "spilled": stores + loads, "registers": registers}
        found.setdefault(arch, {})[symbol] = sizes
    for text in ptx:
        arch = re.search(r"^\.target sm_(\d+)", text, re.MULTILINE)[1]
        if arch not in found:
            continue
        code = re.sub(r"//[^\n]*", "", text.partition(".section")[0])
        for symbol, body in re.findall(r"\.entry\s+(\w+)\(.*?\)[^{]*\{(.*?)\n\}", code, re.DOTALL):
            found[arch][symbol] |= {
                "local": bool(re.search(r"\.local\b", body)),
                "accesses": accesses_of(body),
                "overlap": re.findall(r"\bgriddepcontrol\.(\w+)", body),
                "constant": len(re.findall(r"\bld\.global[\w.:]*\.nc\b", body)),
                "early": early_accesses(body),
            }
        # Functions that were not inlined count as every kernel's.
        if re.search(r"\.func\b", code) and re.search(r"\.local\b", code):
            for report in found[arch].values():
                report["local"] = True
    return found


def accesses_of(body):
    """How many instructions access so many bytes of global or generic memory: {"ld 16": 8, ...}."""
    accesses = Counter()
    for operation, modifiers in re.findall(r"\b(ld|st)((?:\.[\w:]+)+)\s", body):
        words = modifiers.strip(".").split(".")
        if {"param", "shared", "const", "local"} & {word.partition("::")[0] for word in words}:
            continue
        vector = next((int(word[1:]) for word in words if re.fullmatch(r"v\d", word)), 1)
        bits = int(re.sub(r"\D", "", words[-1]))
        accesses[f"{operation} {vector * bits // 8}"] += 1
    return dict(accesses)


def early_accesses(body):
    """Which accesses to memory a thread may come to before it waits for the launch before, on any path."""
    lines = [line.strip() for line in body.splitlines()]
    labels = {line[:-1]: n for n, line in enumerate(lines) if re.fullmatch(r"\$\w+:", line)}
    tables = dict(re.findall(r"(\$\w+):\s*\.branchtargets\s([^;]*);", body))
    found, seen, todo = set(), set(), [0]
    while todo:
        n = todo.pop()
        if n in seen or n >= len(lines):
            continue
        seen.add(n)
        predicated, operation, rest = re.fullmatch(r"(@!?%\w+\s+)?([\w.:]*)(.*)", lines[n]).groups()
        if operation == "griddepcontrol.wait":
            continue
        if re.match(r"(ld|st|red|atom|cp)\.(?!param|shared|local|async\.wait)", operation):
            found.add(operation)
        if operation.startswith("bra"):
            todo += [labels[label] for label in re.findall(r"\$\w+", rest)]
        elif operation.startswith("brx"):
            todo += [
                labels[label] for table in re.findall(r"\$\w+", rest) for label in re.findall(r"\$\w+", tables[table])
            ]
        if predicated or not re.match(r"bra|brx|ret|exit|trap", operation):
            todo.append(n + 1)
    return sorted(found)


@pytest.fixture(scope="module")
def reports():
    """{file: {architecture: {kernel: report}}}. Some minutes where nothing is cached or has been built ahead."""
    if isinstance(tools(), str):
        assert not os.environ.get("CI"), f"CI must compile the kernels: {tools()}"
        pytest.skip(tools())
    units = [unit for unit in native._translation_units("cuda") if unit[0].suffix == ".cu"]
    if ahead := os.environ.get("FUSEDMIX_TEST_NVCC"):
        return {source.stem: built_ahead(Path(ahead), source) for source, _ in units}
    units.sort(key=lambda unit: ("float16" not in unit[0].stem, unit[0].stem))  # the slowest first
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda unit: compiled(*unit), units)
        return dict(zip((source.stem for source, _ in units), made, strict=True))


@pytest.fixture
def kernels(reports):
    """(architecture, kernel, report) of all but those that mix."""
    return [
        (arch, symbol, report)
        for of_file in reports.values()
        for arch, of_arch in of_file.items()
        for symbol, report in of_arch.items()
        if not MIXING.search(symbol)
    ]


# ---- what it must be ------------------------------------------------------------------------------------------------


def test_everything_is_compiled(reports):
    """Every file, for every architecture; every kernel."""
    assert sorted(reports) == sorted(STEMS)
    for of_file in reports.values():
        assert sorted(of_file) == sorted(architectures())
    assert {"80", "90"} <= set(architectures())
    for arch in architectures():
        symbols = [symbol for of_file in reports.values() for symbol in of_file[arch]]
        mixing = {found[1] for found in map(MIXING.search, symbols) if found}
        assert mixing == {"each", "pairs", "roll", "tile"}
        assert sorted(filter(None, map(loss_of, symbols))) == sorted(LOSSES)
        others = [symbol for symbol in symbols if not MIXING.search(symbol) and loss_of(symbol) is None]
        for name in OTHERS:
            assert sum(name in symbol for symbol in others) == INSTANCES.get(name, 1)
        assert len(others) == sum(INSTANCES.get(name, 1) for name in OTHERS)


def test_nothing_is_on_a_stack(kernels):
    for arch, symbol, report in kernels:
        assert report["stack"] == 0, (arch, symbol)
        assert report["spilled"] == 0, (arch, symbol)
        assert not report["local"], (arch, symbol)


def test_three_blocks_fit(kernels):
    """Of kernels of the losses as many as hold 1024 threads, those that a launch counts on; of the logarithms and
    exponentials of float64 768, where 1024 would have a stack."""
    assert REGISTERS <= 255
    for arch, symbol, report in kernels:
        if loss_of(symbol):
            threads = 768 if "binary_cross_entropy_kernelIdLi1E" in symbol else 1024
            assert report["registers"] <= 65536 // threads // 8 * 8, (arch, symbol)
            continue
        threads = next((n for name, n in MORE.items() if name in symbol), THREADS)
        wide = next((65536 // (n * blocks) // 8 * 8 for name, (n, blocks) in WIDE.items() if name in symbol), None)
        assert report["registers"] <= (wide or REGISTERS * THREADS // threads), (arch, symbol)


def test_coefficients_and_grey_images_move_128_bits_at_a_time(kernels):
    """What is read in an inner loop: coefficients by `turn` and `rows`, images by those that select."""
    for arch, symbol, report in kernels:
        if any(name in symbol for name in ("turn_kernel", "rows_kernel", "select_kernel", "soften_kernel")):
            assert counted(report["accesses"], "ld").get(16, 0) >= (1 if "turn" in symbol else 4), (arch, symbol)


def test_launches_overlap_safely(reports):
    """The samplers let the next launch start, and wait for none.

    Every kernel that mixes waits, whichever way a thread takes, before it touches anything but images, which it reads
    out of the L2 cache. It reads nothing as constant, which might be moved across the wait, and lets no launch start:
    that would see images that are half mixed.
    """
    for arch in architectures():
        symbols = {symbol: report for of_file in reports.values() for symbol, report in of_file[arch].items()}
        samplers = {symbol for symbol in symbols if "sample_kernel" in symbol}
        for symbol, report in symbols.items():
            mixes = MIXING.search(symbol)
            if int(arch) < 90 or not (mixes or symbol in samplers):
                assert report["overlap"] == [], (arch, symbol)
            elif mixes:
                assert set(report["overlap"]) == {"wait"}, (arch, symbol)
                assert report["constant"] == 0, (arch, symbol)
                early = {"pairs": "ld.global.cg.v4.u32", "tile": "cp.async.cg.shared.global"}.get(mixes[1])
                assert set(report["early"]) <= {early}, (arch, symbol)
            else:
                assert report["overlap"] == ["launch_dependents"], (arch, symbol)
        if int(arch) >= 90:
            mixing = [report for symbol, report in symbols.items() if MIXING.search(symbol)]
            assert {kind for report in mixing for kind in report["early"]} == {
                "ld.global.cg.v4.u32",
                "cp.async.cg.shared.global",
            }


def counted(accesses, operation):
    return {int(key.split()[1]): n for key, n in accesses.items() if key.startswith(operation)}


def test_logits_and_gradients_move_128_bits_at_a_time(reports):
    """In the wide kernels, four loads under way, forwards before a loop and in it; beside them the elements at the ends
    of a row, and labels."""
    for arch in architectures():
        found = {
            loss_of(symbol): report["accesses"]
            for of_file in reports.values()
            for symbol, report in of_file[arch].items()
            if loss_of(symbol) and loss_of(symbol).width > 1
        }
        assert len(found) == 12
        for loss, accesses in found.items():
            assert accesses["ld 16"] == (4 if "gradient" in loss.kernel else 8), (arch, loss)
            if "gradient" in loss.kernel:
                stores = counted(accesses, "st")
                assert stores.pop(16) == 4, (arch, loss)
                assert stores.keys() == {loss.size}, (arch, loss)


def test_logits_of_pixels_move_four_at_a_time(reports):
    """16 bytes of float32, 8 of the others, whose stores may be the same code; four classes under way."""
    for arch in architectures():
        (forward, backward) = (
            report["accesses"]
            for name in ("pixel_cross_entropy_kernelIf", "pixel_gradient_kernelIf")
            for symbol, report in reports["pixel_losses"][arch].items()
            if name in symbol
        )
        for accesses in (forward, backward):
            assert counted(accesses, "ld")[16] >= 4, arch
            assert counted(accesses, "ld")[8] >= 2 * 4, arch
        assert counted(backward, "st")[16] == 4, arch
        assert counted(backward, "st")[8] >= 4, arch


# ---- the tests can fail ---------------------------------------------------------------------------------------------


def test_reports_of_what_is_wrong():
    """A spill, a stack, narrow accesses: as ptxas and PTX say it."""
    said = """
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 8 bytes cumulative stack size
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""
    ptx = """
.version 9.0
.target sm_90
.visible .entry one(
	.param .align 8 .b8 one_param_0[80]
)
.maxntid 128
{
	.local .align 4 .b8 	__local_depot0[4];
	ld.param.u64 	%rd1, [one_param_0];
	@%p1 ld.global.nc.L1::no_allocate.v4.u32 	{%r1, %r2, %r3, %r4}, [%rd1];
	ld.v2.f64 	{%fd1, %fd2}, [%rd2];
	st.local.f32 	[%rd3], %f1;
	st.global.u8 	[%rd4], %rs1;
	st.shared.u32 	[%rd5], %r1;
}
.visible .entry two(
	.param .u64 two_param_0
)
{
	st.b64 	[%rd4], %rd5;
}
"""
    assert report_of(said, [ptx]) == {
        "90": {
            "one": {
                "stack": 8,
                "spilled": 16,
                "registers": 64,
                "local": True,
                "accesses": {"ld 16": 2, "st 1": 1},
                "overlap": [],
                "constant": 1,
                "early": ["ld.global.nc.L1::no_allocate.v4.u32", "ld.v2.f64", "st.global.u8"],
            },
            "two": {
                "stack": 0,
                "spilled": 0,
                "registers": 32,
                "local": False,
                "accesses": {"st 8": 1},
                "overlap": [],
                "constant": 0,
                "early": ["st.b64"],
            },
        }
    }


def test_early_accesses_are_found_on_every_path():
    """Wherever they are written: a jump over a wait, and a switch."""
    body = """
	ld.param.u64 	%rd1, [one_param_0];
	setp.eq.s32 	%p1, %r1, 0;
	@%p1 bra 	$L__BB0_2;
	ld.global.cg.v4.u32 	{%r1, %r2, %r3, %r4}, [%rd1];
	// begin inline asm
	griddepcontrol.wait;
	// end inline asm
	ld.u64 	%rd2, [%rd3];
	bra.uni 	$L__BB0_4;
$L__BB0_2:
$L_brx_0: .branchtargets
	$L__BB0_3,
	$L__BB0_5;
	brx.idx 	%r5, $L_brx_0;
$L__BB0_3:
	griddepcontrol.wait;
	st.global.u32 	[%rd4], %r1;
$L__BB0_4:
	atom.add.u32 	%r6, [%rd5], 1;
	ret;
$L__BB0_5:
	cp.async.cg.shared.global [%r7], [%rd6], 16;
	griddepcontrol.wait;
	ret;
"""
    assert early_accesses(body) == ["cp.async.cg.shared.global", "ld.global.cg.v4.u32"]
    assert "atom.add.u32" in early_accesses(body.replace("griddepcontrol.wait;", "", 1))
    assert "st.global.u32" in early_accesses(body.replace("BB0_3:\n\tgriddepcontrol.wait;", "BB0_3:"))
