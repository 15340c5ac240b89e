"""The shim that runs CUDA kernels on the CPU finds what is wrong with wrong kernels, and nothing wrong with right ones.

The kernels are csrc/shim/selftest.cpp's. Every question is asked under several seeds: what is found must not depend on
the order in which threads happen to run.
"""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random
from typing import NamedTuple

import pytest
import torch

shim_build = pytest.importorskip("shim_build")  # fcntl: not on Windows
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(shim_build.missing() is not None, reason=str(shim_build.missing())),
]

SEEDS = range(10)
YIELDS = (0.0, 1 / 32, 1.0)
BLOCKS, THREADS = 8, 128
N = BLOCKS * THREADS

WHO = r"block \d+, thread \d+"
SITE = r"\(\S*selftest\.cpp:\d+\)"
BETWEEN = "race between blocks: byte {} of '{}': .* in the same launch"
WITHIN = r"race within a block: {}: .* with no sync\(\) in between"

# kernel -> what is said of it, whichever of two conflicting accesses comes first
WRONG = {
    "two_writers": BETWEEN.format(28, "out"),
    "reads_what_a_block_wrote": BETWEEN.format(r"1[2-5]", "out"),
    "writes_what_blocks_read": BETWEEN.format(0, "in"),
    "race_in_block": WITHIN.format(r"byte \d+ of 'out'"),
    "two_writers_in_block": WITHIN.format(r"byte \d+ of 'out'"),
    "write_after_read_in_block": WITHIN.format(r"byte \d+ of 'out'"),
    "shared_race": WITHIN.format(rf"element \d+ of shared 'values' {SITE}"),
    "shared_writers": WITHIN.format(rf"element 0 of shared 'value' {SITE}"),
    "added_and_read": WITHIN.format(rf"element 0 of shared 'count' {SITE}"),
    "added_and_written": rf"(race within a block|uninitialised): .*element 0 of shared 'count' {SITE}",
    "added_uninitialised": rf"uninitialised: {WHO} adds to element 1 of shared 'count' {SITE}, which",
    "shared_uninitialised": rf"uninitialised: block \d, thread 77 reads element 77 of shared 'values' {SITE}, which",
    "shared_out_of_bounds": rf"out of bounds: {WHO} writes element 1\d\d of shared 'values' {SITE}, which has 100",
    "shared_too_much": "too much shared memory: 49160 bytes with 'values', at most 49152",
    "dynamic_race": WITHIN.format(rf"element \d+ of shared 'values' {SITE}"),
    "dynamic_uninitialised": rf"uninitialised: {WHO} reads element 99 of shared 'values' {SITE}, which nothing has",
    "dynamic_out_of_bounds": rf"out of bounds: {WHO} writes element 1\d\d of shared 'values' {SITE}, which has 100",
    "dynamic_twice": "dynamic shared memory twice: as 'values' and as 'indices'",
    "dynamic_and_too_much": "too much shared memory: 40000 bytes with 'values', at most 37376",
    "out_of_bounds": f"out of bounds: block 1, thread 2 writes 4 bytes at byte {4 * N} of 'out', which has {4 * N}",
    "out_of_bounds_in_part": f"out of bounds: block 1, thread 2 reads 8 bytes at byte -4 of 'in', which has {4 * N}",
    "misaligned": "misaligned: block 1, thread 2 reads 16 bytes at byte 8 of 'in', address 8 past a multiple of 16",
    "misaligned_for_its_size": "misaligned: block 1, thread 2 reads 4 bytes at byte 1 of 'in', address 1 past",
    "uninitialised": "uninitialised: block 0, thread 1 reads byte 0 of 'out', which nothing has written",
    "writes_arguments": "read-only: block 1, thread 2 writes 8 bytes at byte 16 of 'arguments'",
    "writes_read_only": f"read-only: {WHO} writes 4 bytes at byte \\d+ of 'in'",
    "returns_before_barrier": r"barrier divergence: block 1: thread \d+ waits at \S+selftest.cpp:\d+, thread 2 has ret",
    "waits_elsewhere": r"barrier divergence: block \d: thread \d+ waits at \S+:\d+, thread \d+ waits at \S+:\d+",
}

# kernel -> bytes of shared memory that its launch gives
DYNAMIC = {
    **dict.fromkeys(("dynamic_race", "dynamic_uninitialised", "dynamic_out_of_bounds", "dynamic_twice"), 400),
    "dynamic_and_too_much": 64000,
}


@pytest.fixture(scope="module")
def selftest():
    return shim_build.build("fusedmix_shim_selftest", [shim_build.CSRC / "shim" / "selftest.cpp"])


@pytest.fixture
def shim(selftest):
    """The module, watching nothing and with an empty log."""
    selftest.forget_all()
    selftest.reset_log()
    yield selftest
    selftest.forget_all()
    selftest.set_yield_probability(1 / 32)


def watch(shim, in_writable=True, out_initialised=False, n=N):
    """Fresh buffers `in` (0, 1, 2, …) and `out` of n floats, and these alone."""
    shim.forget_all()
    a, b = torch.arange(n, dtype=torch.float32), torch.zeros(n)
    shim.watch(a.data_ptr(), a.nbytes, "in", writable=in_writable)
    shim.watch(b.data_ptr(), b.nbytes, "out", initialised=out_initialised)
    return a, b


def run(shim, kernel, a, b, blocks=BLOCKS, threads=THREADS, shared_bytes=None, dependent=False):
    shared_bytes = DYNAMIC.get(kernel, 0) if shared_bytes is None else shared_bytes
    shim.run(kernel, blocks, threads, a.data_ptr(), b.data_ptr(), a.numel(), shared_bytes, dependent)


def schedules(shim):
    """Sets the shim's order of things to each of many, one after the other."""
    for seed in SEEDS:
        for p in YIELDS:
            shim.seed(seed)
            shim.set_yield_probability(p)
            yield seed, p


# ---- right kernels ----


@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_copy(shim, blocks):
    for _ in schedules(shim):
        a, b = watch(shim, in_writable=False)
        run(shim, "copy", a, b, blocks)
        assert torch.equal(b, a)
        use = shim.launches()[-1]["buffers"]
        assert use["in"]["read_widths"] == use["out"]["write_widths"] == {16: N // 4}


def test_in_place(shim):
    for _ in schedules(shim):
        a, b = watch(shim)
        run(shim, "double_in_place", a, b)
        assert torch.equal(a, 2 * torch.arange(N, dtype=torch.float32))


@pytest.mark.parametrize("kernel", ["sum_blocks", "sum_blocks_double"])
def test_tree_reduction(shim, kernel):
    for _ in schedules(shim):
        a, b = watch(shim)
        run(shim, kernel, a, b)
        assert torch.equal(b[:BLOCKS], a.view(BLOCKS, THREADS).sum(1))


def test_threads_of_a_block_hand_over_memory(shim):
    for _ in schedules(shim):
        a, b = watch(shim)
        run(shim, "reverse_blocks", a, b)
        assert torch.equal(b.view(BLOCKS, THREADS), a.view(BLOCKS, THREADS).flip(1))


@pytest.mark.parametrize("share", [1, 1024, 24 * 1024])
def test_dynamic_shared_memory(shim, share):
    """Of blocks as wide as there are, and more than a kernel may declare."""
    for seed in SEEDS[:3]:
        shim.seed(seed)
        a, b = watch(shim, n=3 * share)
        run(shim, "reverse_in_dynamic", a, b, blocks=3, threads=1024, shared_bytes=4 * share)
        assert torch.equal(b.view(3, share), a.view(3, share).flip(1))
        assert shim.launches()[-1]["shared_bytes"] == 4 * share


def test_a_launch_has_no_more_shared_memory_than_the_device(shim):
    device = shim.limits()
    a, b = watch(shim)
    more = shim.limits()
    more.shared_bytes = 227 * 1024
    for limits in (device, more):
        shim.set_limits(limits)
        run(shim, "copy", a, b, shared_bytes=limits.shared_bytes)
        said = f"^too much shared memory: {limits.shared_bytes + 1} bytes for a launch, at most {limits.shared_bytes}"
        with pytest.raises(shim.ShimError, match=said):
            run(shim, "copy", a, b, shared_bytes=limits.shared_bytes + 1)
    shim.set_limits(device)


def test_shared_arrays_are_used_like_arrays(shim):
    a, b = watch(shim)
    run(shim, "shared_operators", a, b, threads=1)
    assert b[:BLOCKS].tolist() == [22.5] * BLOCKS


def test_what_threads_add_is_not_lost(shim):
    for _ in schedules(shim):
        a, b = watch(shim)
        run(shim, "count_blocks", a, b)
        multiples = (a % 3 == 0).view(BLOCKS, THREADS).sum(1)
        assert torch.equal(b[:BLOCKS], multiples + THREADS / 2)


def test_a_block_counts_while_it_waits(shim):
    """Two counts that follow each other do not mix, and the first orders what threads hand over."""
    for _ in schedules(shim):
        a, b = watch(shim)
        run(shim, "count_in_blocks", a, b)
        expected = a.view(BLOCKS, THREADS).flip(1)
        for place, divisor in enumerate((3, 5)):
            expected[:, place] = (a % divisor == 0).view(BLOCKS, THREADS).sum(1)
        assert torch.equal(b.view(BLOCKS, THREADS), expected)


# ---- wrong kernels ----


@pytest.mark.parametrize("kernel", WRONG)
def test_wrong_kernels_are_found_out(shim, kernel):
    for _ in schedules(shim):
        a, b = watch(shim, in_writable=kernel != "writes_read_only", out_initialised=kernel != "uninitialised")
        with pytest.raises(shim.ShimError, match=f"^{WRONG[kernel]}") as error:
            run(shim, kernel, a, b)
        assert f": {BLOCKS} blocks of {THREADS} threads, " in str(error.value)
        assert shim.launches()[-1]["error"] == str(error.value)
        assert issubclass(shim.ShimError, RuntimeError)
        # The next launch is none the worse for it.
        run(shim, "copy", a, b)
        assert torch.equal(a, b)


# The faults of a kernel that mixes in place -> what is said. `in` is exchanged, `out` has the plan.
WRONG_MIXES = {
    "no_barrier": WITHIN.format(r"byte \d+ of 'in'"),
    "no_barrier_shared": rf"(race within a block|uninitialised): .*element \d+ of shared 'column' {SITE}",
    "shared_column": BETWEEN.format(r"\d+", "in"),
    "shared_column_shared": BETWEEN.format(r"\d+", "in"),
    "stores_early": rf"exchange: {WHO} reads byte \d+ of 'in', which {WHO} has written in this launch",
    "stores_twice": rf"exchange: {WHO} writes byte \d+ of 'in', which {WHO} has written in this launch",
    "reads_early": rf"no wait: {WHO} reads byte \d+ of 'out', which the launch before may still write",
    "reads_sometime_early": "no wait: block 1, thread 500 reads byte 12 of 'out', which the launch before may still w",
    "writes_early": "no wait: block 0, thread 9 writes byte 36 of 'out', which the launch before may still read",
}
WIDE = 1024
EARLY = ("reads_early", "reads_sometime_early", "writes_early")


def mix_columns(shim, kernel, columns=3, dependent=True):
    """Draws a plan and mixes by it. Returns the batch as it was, and as it is."""
    a, b = watch(shim, out_initialised=True, n=columns * WIDE)
    shim.exchange("in")
    was = a.view(8, -1).clone()
    run(shim, "draw_partners", a, b, blocks=2)
    run(shim, kernel, a, b, columns, WIDE, 4 * WIDE, dependent)
    return was, a.view(8, -1)


@pytest.mark.parametrize("kernel", ["mix_columns", "mix_columns_shared"])
@pytest.mark.parametrize("dependent", [False, True])
def test_mixing_in_place(shim, kernel, dependent):
    for _ in schedules(shim):
        was, now = mix_columns(shim, kernel, dependent=dependent)
        assert torch.equal(now, (was + was[(3 * torch.arange(8) + 2) % 8]) / 2)
        drawn, mixed = shim.launches()[-2:]
        assert (drawn["dependent"], mixed["dependent"]) == (False, dependent)
        assert mixed["buffers"]["in"]["max_writes"] == 1


@pytest.mark.parametrize("kernel", WRONG_MIXES)
def test_wrong_mixes_are_found_out(shim, kernel):
    for _ in schedules(shim):
        with pytest.raises(shim.ShimError, match=f"^{WRONG_MIXES[kernel]}"):
            mix_columns(shim, kernel)


@pytest.mark.parametrize("kernel", EARLY)
def test_a_launch_that_does_not_overlap_need_not_wait(shim, kernel):
    was, now = mix_columns(shim, kernel, dependent=False)
    assert not torch.equal(was, now)


def test_what_is_not_exchanged_may_be_written_and_read(shim):
    for kernel in ("stores_early", "stores_twice"):
        a, b = watch(shim, out_initialised=True, n=WIDE)
        run(shim, "draw_partners", a, b)
        run(shim, kernel, a, b, 1, WIDE, 4 * WIDE)


def test_only_a_launch_that_lets_it_is_overlapped(shim):
    """Else a kernel of someone else, which may still write the images, would be."""
    a, b = watch(shim, out_initialised=True, n=WIDE)
    said = "^no such launch: dependent, and the launch before does not let it start"
    for before in (("copy", a, b), ("mix_columns", a, b, 1, WIDE, 4 * WIDE)):
        run(shim, "draw_partners", a, b)
        run(shim, *before)
        with pytest.raises(shim.ShimError, match=said):
            run(shim, "mix_columns", a, b, 1, WIDE, 4 * WIDE, dependent=True)
    run(shim, "draw_partners", a, b)
    with pytest.raises(shim.ShimError, match=r"^let_next_start\(\): block 1, thread 2 is of a dependent launch itself"):
        run(shim, "starts_next_early", a, b, dependent=True)
    run(shim, "starts_next_early", a, b)


def test_exceptions_of_a_kernel_reach_the_caller(shim):
    for _ in schedules(shim):
        a, b = watch(shim)
        with pytest.raises(IndexError, match=r"^from a kernel$"):
            run(shim, "throws", a, b)
        run(shim, "copy", a, b)
        assert torch.equal(a, b)


def test_blocks_race_whichever_comes_first(shim):
    """Both orders occur among the seeds, and both are found."""
    said = set()
    for _ in schedules(shim):
        a, b = watch(shim)
        with pytest.raises(shim.ShimError) as error:
            run(shim, "writes_what_blocks_read", a, b)
        said.update(word for word in ("writes what", "reads what") if word in str(error.value))
    assert said == {"writes what", "reads what"}


class Access(NamedTuple):
    block: int
    thread: int
    step: int  # every other one ends at a barrier
    bytes: range
    writes: bool
    waits: bool

    def conflicts(self, other):
        return (self.writes or other.writes) and bool(set(self.bytes) & set(other.bytes))


def faults(script, exchanged=False):
    """The kinds of faults in a script of accesses: of all pairs, by definition."""
    found = set()
    for a, b in filter(lambda pair: pair[0].conflicts(pair[1]), itertools.combinations(script, 2)):
        first = min(a, b, key=lambda access: access.step)
        if a.block != b.block:
            found.add("race between blocks")
        elif a.thread != b.thread and a.step // 2 == b.step // 2:
            found.add("race within a block")
        elif exchanged and first.writes:
            found.add("exchange")
    return found


def too_early(script, before):
    """Whether a thread touches what the launch before writes, or writes what it reads, and has not waited."""
    return any(
        now.conflicts(then) and not any(a.waits and a.step <= now.step for a in script if a[:2] == now[:2])
        for now in script
        for then in before
    )


# Random kernels of 2 x 3 threads with up to four accesses each to a few bytes.
PLACES = [range(2), range(3), range(4)]  # blocks, threads, steps


def draw_script(random, busy, writing, size):
    script = []
    for at in itertools.product(*PLACES):
        if random.random() < busy:
            width = random.choice([1, 2])
            offset = width * random.randrange(size // width)
            script.append(Access(*at, range(offset, offset + width), random.random() < writing, random.random() < 0.3))
    return script


def said_of(shim, script, out, dependent=False):
    """What the shim says is wrong with a script: the first words."""
    codes = torch.zeros([len(numbers) for numbers in PLACES], dtype=torch.int32)
    for access in script:
        code = len(access.bytes) + 16 * access.bytes[0] + 256 * access.writes + 512 * access.waits
        codes[access.block, access.thread, access.step] = code
    try:
        shim.run_script(codes.data_ptr(), out.data_ptr(), *codes.shape, dependent)
    except shim.ShimError as error:
        return str(error).split(":")[0]
    return None


@pytest.mark.parametrize("exchanged", [False, True])
def test_all_races_and_nothing_else(shim, exchanged):
    random = Random(0)
    out = torch.zeros(16, dtype=torch.uint8)
    shim.watch(out.data_ptr(), out.nbytes, "out")
    if exchanged:
        shim.exchange("out")
    found = Counter()
    for seed in range(4000):
        busy, writing, size = random.choice([0.2, 0.5, 0.9]), random.choice([0.1, 0.3]), random.choice([2, 4, 16])
        script = draw_script(random, busy, writing, size)
        shim.seed(seed)
        shim.set_yield_probability(random.choice(YIELDS))
        said = said_of(shim, script, out)
        assert said in (faults(script, exchanged) or {None}), script
        found[said] += 1
    kinds = [None, "race within a block", "race between blocks", *(["exchange"] if exchanged else [])]
    assert min(found[kind] for kind in kinds) > 50


def test_all_that_is_too_early_and_nothing_else(shim):
    """A launch without faults of its own, and one that begins before it has ended."""
    random = Random(0)
    out = torch.zeros(16, dtype=torch.uint8)
    shim.watch(out.data_ptr(), out.nbytes, "out")
    found = Counter()
    for seed in range(3000):
        before, script = (
            draw_script(random, random.choice([0.05, 0.2]), writing=random.choice([0.0, 0.2]), size=16)
            for _ in range(2)
        )
        if faults(before) or faults(script):
            continue
        shim.seed(seed)
        assert said_of(shim, before, out) is None
        early = too_early(script, before)
        assert said_of(shim, script, out, dependent=True) == ("no wait" if early else None), (before, script)
        found[early] += 1
    assert min(found[True], found[False]) > 50


def test_order_is_a_function_of_the_seed(shim):
    def said(seed):
        shim.seed(seed)
        a, b = watch(shim)
        with pytest.raises(shim.ShimError) as error:
            run(shim, "race_in_block", a, b)
        return str(error.value).split(" [launch")[0]

    assert [said(seed) for seed in SEEDS] == [said(seed) for seed in SEEDS]
    assert len({said(seed) for seed in SEEDS}) > 1


def test_impossible_launches(shim):
    a, b = watch(shim)
    for blocks, threads in [(0, 128), (-1, 128), (2**31, 128), (1, 0), (1, 1025)]:
        with pytest.raises(shim.ShimError, match=f"^no such launch: {blocks} blocks of {threads} threads"):
            run(shim, "copy", a, b, blocks, threads)


def test_device_functions_outside_of_launches(shim):
    a, b = watch(shim)
    run(shim, "copy", a, b)
    with pytest.raises(shim.ShimError, match="outside of a launch"):
        shim.load_outside(a.data_ptr())
    with pytest.raises(shim.ShimError, match="outside of a launch"):
        shim.sync_outside()
    with pytest.raises(shim.ShimError, match="outside of a launch"):
        shim.count_outside()


# ---- the log ----


def test_what_a_launch_did(shim):
    a, b = watch(shim)
    run(shim, "copy", a, b)
    run(shim, "double_in_place", a, b, blocks=3)
    run(shim, "sum_blocks", a, b)
    copy, double, total = shim.launches()
    sums = ("read_bytes", "written_bytes", "distinct_read_bytes", "distinct_written_bytes", "max_reads", "max_writes")
    nothing = {**dict.fromkeys(sums, 0), "read_widths": {}, "write_widths": {}}
    read = {"read_bytes": 4 * N, "distinct_read_bytes": 4 * N, "max_reads": 1}
    written = {"written_bytes": 4 * N, "distinct_written_bytes": 4 * N, "max_writes": 1}
    assert copy == {
        "blocks": BLOCKS,
        "threads": THREADS,
        "arguments": copy["arguments"],
        "shared_bytes": 0,
        "error": None,
        "dependent": False,
        "buffers": {
            "in": {**nothing, **read, "read_widths": {16: N // 4}},
            "out": {**nothing, **written, "write_widths": {16: N // 4}},
            "arguments": nothing,
        },
    }
    assert copy["arguments"].endswith("::Buffers")
    assert double["blocks"] == 3
    assert double["buffers"] == {
        "in": {**nothing, **read, **written, "read_widths": {4: N}, "write_widths": {4: N}},
        "out": nothing,
        "arguments": {
            **nothing,
            "read_bytes": 8 * 3 * THREADS,
            "distinct_read_bytes": 8,
            "max_reads": 3 * THREADS,
            "read_widths": {8: 3 * THREADS},
        },
    }
    assert total["shared_bytes"] == 4 * 129


def test_counts_of_each_byte(shim):
    a, b = watch(shim, out_initialised=True)
    run(shim, "copy", a, b)
    run(shim, "double_in_place", a, b)
    run(shim, "sum_blocks", a, b)
    reads, writes = shim.counts("in")
    assert reads.dtype == "uint32"
    assert reads.tolist() == [3] * 4 * N
    assert writes.tolist() == [1] * 4 * N
    reads, writes = shim.counts("out")
    assert not reads.any()
    assert writes.tolist() == [2] * 4 * BLOCKS + [1] * 4 * (N - BLOCKS)
    shim.reset_log()
    assert shim.launches() == []
    assert not any(counts.any() for name in ("in", "out") for counts in shim.counts(name))


def test_what_one_launch_wrote_the_next_may_read(shim):
    a, b = watch(shim)
    run(shim, "copy", a, b)
    run(shim, "sum_blocks", b, a)
    shim.reset_log()
    run(shim, "copy", b, a)
    assert torch.equal(a, b)


def test_watching(shim):
    a, b = watch(shim)
    with pytest.raises(ValueError, match="'in' is watched already"):
        shim.watch(0, 4, "in")
    with pytest.raises(ValueError, match="'x' overlaps 'in'"):
        shim.watch(a.data_ptr() + a.nbytes - 1, 4, "x")
    with pytest.raises(ValueError, match="'arguments' is"):
        shim.watch(0, 4, "arguments")
    with pytest.raises(ValueError, match="'x' is not watched"):
        shim.counts("x")
    with pytest.raises(ValueError, match=r"a probability lies in \[0, 1\]"):
        shim.set_yield_probability(1.5)
    shim.watch(0, 0, "empty")
    assert [counts.shape for counts in shim.counts("empty")] == [(0,), (0,)]
    shim.forget("in")
    with pytest.raises(shim.ShimError, match=r"out of bounds: .* reads 16 bytes at"):
        run(shim, "copy", a, b)


# ---- building ----


def test_nothing_is_built_twice(selftest):
    source = shim_build.CSRC / "shim" / "selftest.cpp"
    assert shim_build.build("fusedmix_shim_selftest", [source]) is selftest


def test_build_says_what_the_compiler_said(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text('#include "fusedmix/platform.h"\nFUSEDMIX_DEVICE int f() { return no_such_name; }\n')
    with pytest.raises(RuntimeError, match="no_such_name"):
        shim_build.build("wrong", [source])
