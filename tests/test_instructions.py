"""How many machine instructions the CUDA kernels have, in the library that is built ahead (benchmarks/instructions.py).

The committed table holds for the ptxas that it names: another one chooses other instructions. The bounds hold for every
one. After a change of the kernels, this writes the table anew:

    python tests/test_instructions.py

The library is built once for the same sources, in the folder of the shim's modules (shim_build.py), with notes of which
line an instruction comes from: what is shipped has none, and is half as large.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import itertools
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import instructions
from fusedmix.backends import native

shim_build = pytest.importorskip("shim_build")  # fcntl: not on Windows

CSRC = Path(__file__).resolve().parents[1] / "csrc"
MOST_BYTES = 10_000_000  # of the library for one architecture


@functools.cache
def missing():
    """Why nothing can be built and read here, or None."""
    try:
        native._nvcc(), native._cxx(), native._ninja()
        instructions.check_tools()
    except (native.BuildError, instructions.ToolError) as error:
        return str(error)
    return None


def skip_without_tools():
    if missing() is not None:
        assert not os.environ.get("CI"), f"CI must read the kernels: {missing()}"
        pytest.skip(missing())


def architectures():
    known = native._known_archs(native._nvcc())
    return [arch for arch in native._AHEAD_ARCHS if int(arch) in known]


def built():
    """The library for all architectures, with notes of lines. Building it takes some minutes, unless it has just been
    built ahead: $FUSEDMIX_TEST_LIBRARY."""
    if ahead := os.environ.get("FUSEDMIX_TEST_LIBRARY"):
        return Path(ahead)
    target = shim_build.cache() / f"instructions-{native.ahead_file('cuda', architectures())}"
    with (shim_build.cache() / "instructions.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            flags = f"-lineinfo {os.environ.get('NVCC_APPEND_FLAGS', '')}"
            with (
                mock.patch.dict(os.environ, NVCC_APPEND_FLAGS=flags),
                tempfile.TemporaryDirectory(dir=shim_build.cache()) as scratch,
            ):
                native.build("cuda", target, Path(scratch), architectures())
    return target


@pytest.fixture(scope="module")
def library():
    skip_without_tools()
    return built()


@pytest.fixture(scope="module")
def counted(library):
    return instructions.read([library])


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_table_is_within_bounds():
    counts, version = instructions.committed()
    assert list(instructions.faults(counts)) == []
    assert {count.arch for count in counts} == set(native._AHEAD_ARCHS)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_only_what_needs_it_is_exempt():
    """From no limit that it keeps, and not by much more than it needs: the limits hold for other compilers too."""
    counts, _ = instructions.committed()
    for exempt in instructions.EXEMPT:
        whose = [count for count in counts if re.fullmatch(exempt.kernels, count.name)]
        for field, limit in exempt.limits.items():
            most = max((c for c in whose if field in c.own_limits), key=lambda count: getattr(count, field))
            assert most.own_limits[field] < getattr(most, field) <= limit <= 1.25 * getattr(most, field), (
                exempt,
                field,
            )
        assert exempt.reason
        assert all(exempt.reason in count.reason for count in whose)


def test_every_kernel_that_mixes_is_known():
    source = (CSRC / "cuda" / "mix_kernel.h").read_text()
    bodies = dict(re.findall(r"(\w+_kernel)\(FUSEDMIX_ARGS\(MixArgs, args\)\) \{\n(.*?)\n\}", source, re.DOTALL))
    assert sorted(bodies) == sorted(instructions.MIXING)
    assert [name for name in bodies if "device::sync()" in bodies[name]] == ["roll_kernel", "tile_kernel"]


def test_every_kernel_is_in_the_table():
    """And nothing else, for every architecture: also those that draw, those of FMix, of the losses, of labels."""
    declared = re.compile(r"^\s*FUSEDMIX_(?:WIDE_)?KERNEL\((?:[^()]|\([^()]*\))*\)\s+(\w+)\(", re.MULTILINE)
    kernels = {name for path in (CSRC / "cuda").iterdir() for name in declared.findall(path.read_text())}
    assert {"sample_kernel", "select_kernel", "cross_entropy_kernel", "binary_gradient_kernel", "each_kernel"} < kernels
    counts, _ = instructions.committed()
    for arch in native._AHEAD_ARCHS:
        assert {count.kernel.partition("<")[0] for count in counts if count.arch == arch} == kernels


def test_every_sampler_is_in_the_table():
    """For partners by formula and random ones; that of all families for partners by class too."""
    (listed,) = re.findall(r"return launch_first<(.*)>\(args, stream\);\n\}", (CSRC / "cuda" / "sample.cu").read_text())
    *families, every = listed.replace("fusedmix::", "").split(", ")
    assert every == instructions.ALL_FAMILIES
    counts, _ = instructions.committed()
    for arch in native._AHEAD_ARCHS:
        found = [instructions.SAMPLER.fullmatch(count.kernel) for count in counts if count.arch == arch]
        wanted = [*itertools.product([*families, every], "01"), (every, "2")]
        assert sorted(sampler.groups() for sampler in found if sampler) == sorted(wanted)


NUMBERS = """
#include <pybind11/stl.h>
#include "../cuda/mix_kernel.h"
using namespace fusedmix::cuda;
template <int32_t kFamilies>
using Set = std::integral_constant<int32_t, kFamilies>;
template <class F>
std::map<int, int> of_sets(const F& f) {
  return {{kConstantSet, f(Set<kConstantSet>{})}, {kCutSet, f(Set<kCutSet>{})},
          {kBoxSet, f(Set<kBoxSet>{})},           {kGaussianSet, f(Set<kGaussianSet>{})},
          {kFormulaSet, f(Set<kFormulaSet>{})},   {kStoredSet, f(Set<kStoredSet>{})},
          {kAnySet, f(Set<kAnySet>{})}};
}
template <class T>
std::map<int, int> after() {
  return of_sets([](auto set) { return kAfter<T, decltype(set)::value>; });
}
PYBIND11_MODULE(fusedmix_mix_numbers, m) {
  m.attr("each") = kEachSamples;
  m.attr("many") = of_sets([](auto set) { return kMany<decltype(set)::value>; });
  m.attr("ahead") = of_sets([](auto set) { return kAheadOf<decltype(set)::value>; });
  m.attr("after") = std::map<int, std::map<int, int>>{
      {1, after<uint8_t>()}, {2, after<fusedmix::Half>()}, {4, after<float>()}};
}
"""


@pytest.mark.thorough
@pytest.mark.skipif(shim_build.missing() is not None, reason=str(shim_build.missing()))
def test_vectors_are_those_of_the_source(tmp_path):
    """What a kernel is compiled for, and how many samples it has under way."""
    (tmp_path / "numbers.cpp").write_text(NUMBERS)
    numbers = shim_build.build("fusedmix_mix_numbers", [tmp_path / "numbers.cpp"])
    assert numbers.ahead.keys() == instructions.SETS.keys()
    for size, (families, ahead) in itertools.product(numbers.after, numbers.ahead.items()):
        masks = instructions.SETS[families]
        if masks != "stored":  # of which roll has registers for two
            assert instructions.share("roll_kernel", masks, size).after == ahead
        assert instructions.share("tile_kernel", masks, size)[1:] == (ahead, numbers.after[size][families])
        in_loops = 1 if numbers.many[families] else numbers.each
        assert instructions.share("each_kernel", masks, size) == (numbers.each, in_loops, in_loops)
    assert instructions.BOUNDS.keys() == set(instructions.SETS.values()) - {"stored"}


@pytest.mark.thorough
def test_the_table_is_of_these_kernels(counted):
    counts, version = counted
    table, made_by = instructions.committed()
    assert [count.name for count in counts] == [count.name for count in table if count.arch in architectures()]
    if version != made_by:
        pytest.skip(f"the table is of ptxas {made_by}, this is {version}")
    assert counts == table


@pytest.mark.thorough
def test_the_kernels_are_within_bounds(counted):
    counts, _ = counted
    assert list(instructions.faults(counts)) == []


def sections_of(elf):
    """The name, the beginning and the size of each section of an ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    entry, number, of_names = struct.unpack_from("<HHH", elf, 58)
    # Of a section: where its name is, ..., where it begins, its size.
    sections = [struct.unpack_from("<I20xQQ", elf, table + n * entry) for n in range(number)]
    names = elf[sections[of_names][1] :]
    return [(names[name : names.index(b"\0", name)].decode(), begin, size) for name, begin, size in sections]


def notes_of(cubin):
    """How many bytes are in sections of notes for debuggers. Several sections may be the same bytes."""
    return sum({begin: size for name, begin, size in sections_of(cubin) if "debug" in name}.values())


@pytest.mark.thorough
def test_size_of_the_library(library, tmp_path):
    """For one architecture, without what it holds for the others and without the notes that were added here."""
    code = dict.fromkeys(architectures(), 0)
    whole = 0
    for path in instructions.extract(library, tmp_path):
        cubin = path.read_bytes()
        whole += len(cubin)
        arch = path.suffixes[-2].removeprefix(".sm_")
        if arch in code:  # nvcc's static runtime brings a little for others
            code[arch] += len(cubin) - notes_of(cubin)
    (for_gpus,) = (size for name, _, size in sections_of(library.read_bytes()) if name == ".nv_fatbin")
    assert whole < for_gpus  # nvcc compresses no machine code; beside it may be PTX
    for arch, size in code.items():
        assert 0 < size + library.stat().st_size - for_gpus <= MOST_BYTES, f"sm_{arch}"


# ---- the counts can be wrong ----------------------------------------------------------------------------------------

PLANTED = """
#include "fusedmix/platform.h"
namespace fusedmix::cuda {
struct MixArgs { const uint4* in; uint4* out; int32_t n; };
#include "targets.h"
#include "finish_pixel.h"

// Two vectors a thread, with as much arithmetic as is asked for.
template <class T, int V, int32_t kFamilies, bool kAdjoint>
FUSEDMIX_WIDE_KERNEL(256, 2) each_kernel(FUSEDMIX_ARGS(MixArgs, args)) {
  if (device::block() == 0) return write(args);
  uint4 x[2];
  FUSEDMIX_UNROLL for (int k = 0; k < 2; ++k) x[k] = device::load(args.in + 2 * device::thread() + k);
  FUSEDMIX_UNROLL for (int k = 0; k < 2; ++k) {
    FUSEDMIX_UNROLL for (int n = 0; n < STEPS; ++n) x[k].x = (x[k].x ^ x[k].y) * (x[k].z + n);
  }
  FUSEDMIX_UNROLL for (int k = 0; k < 2; ++k) device::store(args.out + 2 * device::thread() + k, x[k]);
}
int launch_each(const MixArgs& args) { return device::launch(each_kernel<float, 4, 1, false>, 1, 256, nullptr, args); }

template <int kNumber>
FUSEDMIX_DEVICE uint32_t steps(uint32_t x) {
  FUSEDMIX_UNROLL for (int n = 0; n < kNumber; ++n) x = (x ^ device::thread()) * (x + n);
  return x;
}

// Arithmetic outside of loops, in one before the barrier, and in one after it.
template <class T, int V, int32_t kFamilies>
FUSEDMIX_WIDE_KERNEL(256, 2) tile_kernel(FUSEDMIX_ARGS(MixArgs, args)) {
  FUSEDMIX_DYNAMIC_SHARED(uint32_t, shared);
  const uint32_t x = steps<ONCE>(args.n);
  FUSEDMIX_NO_UNROLL for (int i = 0; i < args.n; ++i) shared[256 * i + device::thread()] = steps<BEFORE>(x + i);
  device::sync();
  FUSEDMIX_NO_UNROLL for (int i = 0; i < args.n; ++i) {
    device::store(&args.out->x + 256 * i + device::thread(), steps<AFTER>(shared[256 * i + 255 - device::thread()]));
  }
}
int launch_tile(const MixArgs& args) { return device::launch(tile_kernel<float, 4, 1>, 1, 256, nullptr, args); }

// For three vectors, and apart from them.
template <class T, int P, int C, int32_t kFamilies, bool kDraws>
FUSEDMIX_WIDE_KERNEL(256, 2) finish_vectors_kernel(FUSEDMIX_ARGS(MixArgs, args)) {
  if (device::block() == 0) return finish_one_by_one(args);
  device::store(&args.out->x, steps<FINISHED>(args.n));
}
int launch_finish(const MixArgs& args) {
  return device::launch(finish_vectors_kernel<uint8_t, 16, 3, 7, true>, 1, 256, nullptr, args);
}

// Registers for a few of what it has to remember.
FUSEDMIX_WIDE_KERNEL(512, 3) spills(FUSEDMIX_ARGS(MixArgs, args)) {
  uint4 x[16];
  FUSEDMIX_UNROLL for (int k = 0; k < 16; ++k) x[k] = device::load(args.in + 512 * k + device::thread());
  device::sync();
  FUSEDMIX_UNROLL for (int k = 0; k < 16; ++k) device::store(args.out + 512 * k + device::thread(), x[15 - k]);
}

FUSEDMIX_WIDE_KERNEL(128, 1) shares(FUSEDMIX_ARGS(MixArgs, args)) {
  FUSEDMIX_SHARED(float, shared, 3000);
  shared[device::thread()] = static_cast<float>(args.n);
  device::sync();
  device::store(&args.out->x, static_cast<uint32_t>(shared[args.n]));
}

// An array that is indexed by what is not known.
FUSEDMIX_WIDE_KERNEL(128, 1) has_a_stack(FUSEDMIX_ARGS(MixArgs, args)) {
  uint32_t x[200];
  for (int k = 0; k < 200; ++k) x[k] = device::load(args.in + k).x;
  x[device::thread() % 200] = 0;
  device::store(&args.out->x, x[args.n]);
}
}  // namespace fusedmix::cuda
"""
PLANTED_TARGETS = """
FUSEDMIX_DEVICE void write(const MixArgs& args) {
  uint32_t x = args.n;
  FUSEDMIX_UNROLL for (int n = 0; n < TARGET_STEPS; ++n) x = (x ^ device::thread()) * (x + n);
  device::store(&args.out->x, x);
}
"""
PLANTED_PIXELS = PLANTED_TARGETS.replace("write(", "finish_one_by_one(").replace("TARGET_STEPS", "PIXEL_STEPS")


def compiled(folder, arch, **more):
    """{kernel: count} of what is planted."""
    names = ("STEPS", "TARGET_STEPS", "ONCE", "BEFORE", "AFTER", "FINISHED", "PIXEL_STEPS")
    numbers = {**dict.fromkeys(names, 1), **more}
    skip_without_tools()
    (folder / "planted.cu").write_text(PLANTED)
    (folder / "targets.h").write_text(PLANTED_TARGETS)
    (folder / "finish_pixel.h").write_text(PLANTED_PIXELS)
    cubin = folder / "planted.cubin"
    flags = [
        *native._NVCC_FLAGS,
        "-lineinfo",
        f"-arch=sm_{arch}",
        *(f"-D{name}={number}" for name, number in numbers.items()),
    ]
    includes = [f"-I{folder / 'include'}" for folder in (CSRC, *native._pypi_cuda())]
    command = [native._nvcc(), *flags, *includes, "-cubin", "-o", str(cubin), str(folder / "planted.cu")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts, _ = instructions.read([cubin])
    assert {count.arch for count in counts} == {arch}
    return {count.kernel: count for count in counts}


@pytest.mark.thorough
@pytest.mark.parametrize("arch", native._AHEAD_ARCHS)
def test_planted_kernels(tmp_path, arch):
    found = compiled(tmp_path, arch)
    mixes = found["each_kernel<float, 4, 1, false>"]
    assert (mixes.masks, mixes.threads) == ("constants", 256)
    assert (mixes.loads, mixes.stores) == (2, 2)
    assert (mixes.stack, mixes.local, mixes.shared) == (0, 0, 0)
    spills, stack, shares = found["spills"], found["has_a_stack"], found["shares"]
    assert (spills.threads, spills.registers, spills.blocks) == (512, 40, 3)
    assert (spills.loads, spills.stores) == (16, 16)
    assert spills.stack >= 4 * (16 * 4 - 40)
    assert spills.local > 0
    assert (stack.threads, stack.stack, stack.local > 0) == (128, 800, True)
    limit = instructions.MULTIPROCESSORS[arch]
    assert (shares.shared, shares.stack, shares.local) == (12000, 0, 0)
    assert shares.blocks == min(limit.threads // 128, limit.shared // (12032 + 1024))
    assert {fault.split(":")[0] for fault in instructions.faults(found.values())} == {spills.name, stack.name}
    assert not list(instructions.faults([mixes]))

    # More of it is counted where it is, and only there.
    more = compiled(tmp_path, arch, STEPS=41)["each_kernel<float, 4, 1, false>"]
    assert more.instructions - mixes.instructions >= 2 * 40 * 2
    assert abs(more.targets - mixes.targets) <= 3
    assert more.per_vector >= mixes.per_vector + 40 * 2
    labels = compiled(tmp_path, arch, TARGET_STEPS=60)["each_kernel<float, 4, 1, false>"]
    assert labels.targets - mixes.targets >= 2 * 59
    assert abs(labels.per_vector - mixes.per_vector) <= 3
    tiles = found["tile_kernel<float, 4, 1>"]
    for place, vectors in zip(
        ("ONCE", "BEFORE", "AFTER"), instructions.share("tile_kernel", "constants", 4), strict=True
    ):
        more = compiled(tmp_path, arch, **{place: 41})["tile_kernel<float, 4, 1>"]
        added = more.instructions - tiles.instructions
        assert added >= 40 * 2
        assert abs(more.in_loops - tiles.in_loops - (added if place == "BEFORE" else 0)) <= 10
        assert abs(more.after - tiles.after - (added if place == "AFTER" else 0)) <= 10
        assert more.per_vector - tiles.per_vector == pytest.approx(added / vectors, abs=6)
    name = "finish_vectors_kernel<unsigned char, 16, 3, 7, true>"
    finishes = found[name]
    assert finishes.masks == "boxes"
    more = compiled(tmp_path, arch, FINISHED=61)[name]
    added = more.instructions - finishes.instructions
    assert more.per_vector - finishes.per_vector == pytest.approx(added / 3, abs=3)
    assert more.per_vector >= finishes.per_vector + 40
    holes = compiled(tmp_path, arch, PIXEL_STEPS=60)[name]
    assert holes.targets - finishes.targets >= 2 * 59
    assert abs(holes.per_vector - finishes.per_vector) <= 3


def test_faults():
    """Each bound by itself, at it and beyond it."""
    most = instructions.MIXING_LIMITS["instructions"]
    one = dataclasses.replace(
        instructions.committed()[0][0],
        arch="77",  # which nothing is exempt for
        kernel="tile_kernel<unsigned char, 16, 9>",
        masks="Gaussians",
        stack=0,
        local=0,
        instructions=most,
        targets=150,
        per_vector=660,
    )
    assert one.own_limits["per_vector"] == 660
    assert not list(instructions.faults([one]))
    for beyond in ({"instructions": most + 1}, {"targets": 151}, {"per_vector": 661}, {"stack": 8}, {"local": 1}):
        assert len(list(instructions.faults([dataclasses.replace(one, **beyond)]))) == 1, beyond
    other = dataclasses.replace(one, kernel="mask_kernel", masks="", instructions=9999)
    assert not list(instructions.faults([other]))
    assert len(list(instructions.faults([dataclasses.replace(other, stack=8)]))) == 1
    for partners, most in enumerate((1500, 1800)):
        sampler = dataclasses.replace(
            other, kernel=f"sample_kernel<fusedmix::Box, (Partners){partners}>", instructions=most
        )
        assert not list(instructions.faults([sampler]))
        for beyond in ({"instructions": most + 1}, {"stack": 8}):
            assert len(list(instructions.faults([dataclasses.replace(sampler, **beyond)]))) == 1
    every = dataclasses.replace(other, kernel="sample_kernel<Every, (Partners)0>")
    assert not list(instructions.faults([every]))
    for draws, most in zip(("false", "true"), instructions.FINISH_BOUNDS["boxes"], strict=True):
        name = f"finish_vectors_kernel<unsigned char, 16, 3, 7, {draws}, true, false>"
        finishes = dataclasses.replace(one, kernel=name, masks="boxes", per_vector=most, targets=999)
        assert not list(instructions.faults([finishes]))
        for beyond in ({"per_vector": most + 1}, {"local": 1}):
            assert len(list(instructions.faults([dataclasses.replace(finishes, **beyond)]))) == 1
    adjoint = dataclasses.replace(one, kernel="each_kernel<fusedmix::Half, 8, 9, true>", per_vector=9999)
    assert not list(instructions.faults([adjoint]))


def test_the_table_is_read_as_it_was_written(tmp_path):
    counts, version = instructions.committed()
    instructions.write(tmp_path / "again.csv", counts, version)
    assert (tmp_path / "again.csv").read_bytes() == instructions.TABLE.read_bytes()


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks"),
    [
        ("90", 128, 168, 0, 3),  # 3 · 128 threads of 168 registers are 64,512 of 65,536
        ("90", 128, 169, 0, 2),  # but registers come by 8 a thread, 256 a warp
        ("90", 1024, 32, 0, 2),
        ("90", 1024, 33, 0, 1),
        ("120", 1024, 32, 0, 1),  # 1536 threads
        ("120", 512, 40, 0, 3),
        ("120", 512, 41, 0, 2),
        ("80", 128, 16, 0, 16),
        ("80", 32, 16, 0, 32),
        ("86", 32, 16, 0, 16),
        ("90", 96, 16, 0, 21),  # 64 warps
        ("90", 96, 80, 0, 8),  # of 24 warps' registers, 6 in each quarter
        ("80", 128, 16, 48 * 1024, 3),  # 164 KiB, and 1 KiB more for each
        ("90", 128, 16, 48 * 1024, 4),
        ("120", 128, 16, 48 * 1024, 2),
        ("120", 128, 16, 49 * 1024, 2),
        ("120", 128, 16, 49 * 1024 + 1, 1),
    ],
)
def test_blocks_that_fit(arch, threads, registers, shared, blocks):
    assert instructions.blocks_that_fit(arch, threads, registers, shared) == blocks


def test_names():
    """As c++filt has them."""
    ours = "fusedmix::cuda::"
    for whole, short in {
        f"void {ours}each_kernel<float, 4, 1, false>({ours}MixArgs)": "each_kernel<float, 4, 1, false>",
        f"{ours}(anonymous namespace)::mask_kernel({ours}(anonymous namespace)::MaskArgs)": "mask_kernel",
        f"void {ours}mix<fusedmix::Half, (fusedmix::Way)3>({ours}MixArgs)": "mix<fusedmix::Half, (fusedmix::Way)3>",
        f"void {ours}(anonymous namespace)::sample_kernel<fusedmix::Box, ({ours}(anonymous namespace)::Partners)1>"
        f"({ours}(anonymous namespace)::SampleArgs)": "sample_kernel<fusedmix::Box, (Partners)1>",
    }.items():
        assert instructions.short(whole) == short


def test_what_is_wrong_is_said(tmp_path, capsys):
    skip_without_tools()
    (tmp_path / "empty.so").write_bytes(b"")
    for name in ("empty.so", "none.so"):
        assert instructions.main([str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err


if __name__ == "__main__":
    counts, version = instructions.read([built()])
    instructions.write(instructions.TABLE, counts, version)
    sys.exit("\n".join(instructions.faults(counts)) or 0)
