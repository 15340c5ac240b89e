"""What Triton makes of the kernels for a GPU, without one.

Compiled code is made and read by processes of their own (triton_compiled.py), because this one has the kernels
interpreted.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import triton_loops
from batches import DTYPES
from families import RECORDS
from fusedmix.methods import Families, Resize

pytest.importorskip("triton")

import triton

from fusedmix.backends.triton.enums import Source
from operators.on_triton import KERNELS, LOSSES, Shape, backend, launch

pytestmark = pytest.mark.thorough


def compiler(*arguments, folder):
    """tests/triton_compiled.py, which must not interpret."""
    script = Path(__file__).parents[1] / "triton_compiled.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def printed(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{architecture: [(launch, kernel, report)]}, compiled by the first worker of pytest-xdist that needs it."""
    import fcntl

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    kept, archs = folder / "triton_compiled.json", ("90", "80", "100")
    with (folder / "triton_compiled.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            running = [compiler("compile", arch, folder=tmp_path_factory.mktemp(f"sm{arch}")) for arch in archs]
            kept.write_text(json.dumps(dict(zip(archs, map(printed, running), strict=True))))
    return json.loads(kept.read_text())


def of_kernel(compiled, *names):
    return [(arch, *of) for arch, made in compiled.items() for of in made if of[1] in names]


# ---- how images and logits are moved --------------------------------------------------------------------------------


def test_images_move_128_bits_at_a_time(compiled):
    """But those of odd sizes, element by element. All else that is loaded is the plan: partners (8 bytes) and the
    numbers of masks (4 bytes). There is none where these are formulas and arguments. Of stored masks a word or two for
    each vector (4 bytes), or a level for each element (2). Neighbouring threads have neighbouring vectors."""
    for arch, launched, _, report in of_kernel(compiled, "mix_kernel"):
        name, _, dtype = launched.partition(": ")
        item = getattr(torch, dtype.removeprefix("torch.")).itemsize
        loads, stores = ({k: n for k, n in report["accesses"].items() if k.startswith(of)} for of in ("ld", "st"))
        assert report["spread"] == [1], (arch, launched)
        if "odd" in name:
            wide = max(1, 4 // item) * item
            assert stores.keys() <= {f"st {item}", f"st {wide}"}, (arch, launched)
            continue
        assert stores.keys() == {"st 16"}, (arch, launched)
        assert loads.pop("ld 16") >= stores["st 16"], (arch, launched)
        assert loads.keys() <= {"ld 4", "ld 8", *(["ld 2"] if "levels" in name else [])}, (arch, launched)
        if "bits" in name or "levels" in name:
            assert loads, (arch, launched)
        elif "random" not in name:
            assert not loads, (arch, launched)
    kinds = {of[1].partition(": ")[2] for of in of_kernel({"90": compiled["90"]}, "mix_kernel")}
    assert kinds == set(map(str, DTYPES))


def test_what_is_made_of_several_samples_moves_in_vectors(compiled):
    """Of 16 bytes, but for bytes that are pasted from several pixels or of one of several patches: those move in words.
    Every term of a blend is loaded once for each that is stored; and with partners of another batch two are. Of pasted
    crops an element takes as many loads as pixels. Beside them a program loads its patches or terms once. Nothing goes
    through shared memory, but where Triton 3.6 computes addresses once for all corners of a crop."""
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
    dtypes = {name: set() for name in ("mix_with_kernel", "blend_kernel", "paste_kernel")}
    for arch, launched, kernel, report in of_kernel(compiled, *dtypes):
        constants, accesses = report["constants"], dict(report["accesses"])
        dtype = getattr(torch, launched.rpartition("torch.")[2])
        item, vectors = dtype.itemsize, constants["V"] * dtype.itemsize
        dtypes[kernel].add(dtype)
        (stores,) = (n for of, n in accesses.items() if of == f"st {vectors}")
        assert accesses.keys() - {f"st {vectors}"} == {of for of in accesses if of.startswith("ld")}, (arch, launched)
        assert apart(report) or (old and kernel == "paste_kernel"), (arch, launched, report["shared"])
        assert in_registers(report), (arch, launched, report["stack"])
        if kernel == "paste_kernel":
            count, ndim = constants["COUNT"], constants["NDIM"]
            several = constants["MODE"] != Resize.NEAREST or count > 1
            assert vectors == (4 if several and item == 1 else 16), (arch, launched)
            loads = {4: 4 * ndim * count, 8: count}  # of the plan
            loads[vectors] = loads.get(vectors, 0) + stores
            corners = 2**ndim if constants["MODE"] != Resize.NEAREST else 1
            loads[item] = loads.get(item, 0) + stores * constants["V"] * corners
            assert accesses == {f"st {vectors}": stores} | {f"ld {of}": n for of, n in loads.items()}, (arch, launched)
            continue
        assert vectors == 16, (arch, launched)
        terms = constants.get("TERMS", 2)
        assert accesses["ld 16"] == terms * stores, (arch, launched)
        if kernel == "blend_kernel":
            assert accesses == {"st 16": stores, "ld 16": terms * stores, "ld 4": terms, "ld 8": terms}, (
                arch,
                launched,
            )
    assert all(found == set(DTYPES) for found in dtypes.values())


def test_batches_are_finished_by_words(compiled):
    """Bytes are read four at a time, whatever is flipped and however channels and pixels lie; what is made of them is
    written as vectors of four elements. Beside them there are partners (8 bytes), and numbers of four. Nothing goes
    through shared memory, nothing is on a stack, but where Triton 3.6 puts two registers aside."""
    stack = 8 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8) else 0
    seen = set()
    for arch, launched, _, report in of_kernel(compiled, "finish_images_kernel"):
        constants, accesses = report["constants"], dict(report["accesses"])
        (store,) = (of for of in accesses if of.startswith("st"))
        assert store in ("st 8", "st 16"), (arch, launched)
        assert accesses.pop(store) % 3 == 0, (arch, launched)
        wide = {Source.PLANES: {"ld 4"}, Source.PIXELS: {"ld 4"}, Source.ELEMENTS: {"ld 2", "ld 4"}}
        allowed = wide.get(constants["SOURCE"], {"ld 4", "ld 8", "ld 16"}) | {"ld 8"}
        assert accesses.keys() <= allowed, (arch, launched, accesses)
        assert report["shared"] == 0, (arch, launched)
        assert report["local"] == 0, (arch, launched)
        assert report["stack"] <= stack, (arch, launched)
        seen.add((constants["SOURCE"], constants["LAST"]))
    assert seen >= {(Source.PLANES, False), (Source.PLANES, True), (Source.PIXELS, False), (Source.PIXELS, True)}
    assert seen >= {(Source.ELEMENTS, False), (Source.VECTORS, False), (Source.VECTORS, True)}
    for _, launched, _, report in of_kernel(compiled, "draw_finish_kernel"):
        assert set(report["sqrt"]) == {"sqrt.rn.f64"}, launched


def test_logits_and_gradients_move_128_bits_at_a_time(compiled):
    """Where the number of classes allows it."""
    for arch, launched, kernel, report in of_kernel(compiled, *(f"{of}_kernel" for of in LOSSES)):
        dtype = launched.partition(": ")[2]
        if dtype not in ("torch.float32", "torch.bfloat16"):  # the others have 1001 classes
            continue
        assert report["accesses"].get("ld 16", 0) > 0, (arch, launched, kernel)
        if "backward" in kernel:
            stores = [key for key in report["accesses"] if key.startswith("st")]
            assert stores == ["st 16"], (arch, launched, kernel)


def in_order(report):
    """Whether a kernel may mix in place: all images are loaded before the last barrier, and stored after it; where each
    vector is one thread's and there is no barrier, as they come. Nothing is loaded as if it never changed."""
    shape = report["constants"]["SHAPE"]
    barriers = shape in (Shape.ROLL, Shape.TILE)
    return re.fullmatch("[LB]*LB+S+" if barriers else "[LS]+", report["events"]) is not None


def apart(report):
    """Whether threads share nothing but the barrier, and neighbours have neighbouring vectors."""
    return report["shared"] == 0 and report["spread"] == [1]


def in_registers(report):
    return report["stack"] == report["local"] == 0


def test_what_is_mixed_in_place_is_read_before_it_is_written(compiled):
    """In the code that is compiled: the interpreter runs a program as a whole, and would not miss a barrier."""
    shapes = set()
    for arch, launched, _, report in of_kernel(compiled, "mix_kernel"):
        if "odd" in launched:  # their vectors are as narrow as what is loaded of the plan
            continue
        assert in_order(report), (arch, launched, report["events"])
        shapes.add((arch, report["constants"]["SHAPE"], report["constants"]["PARTS"] > 1))
    assert {(shape, parts) for arch, shape, parts in shapes if arch == "90"} == {
        *((shape, False) for shape in Shape),
        (Shape.TILE, True),
    }


def test_kernels_that_mix_need_neither_shared_memory_nor_a_stack(compiled):
    """Shared memory would be the price of a layout that does not suit what is computed, and of more barriers. Levels,
    which are loaded element by element, take it with Triton 3.6."""
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
    for arch, launched, _, report in of_kernel(compiled, "mix_kernel"):
        assert apart(report) or (old and "levels" in launched), (arch, launched, report["shared"])
        assert in_registers(report) or arch != "90", (arch, launched, report["stack"])


def test_a_kernel_that_is_wrong_is_found(tmp_path):
    """Without its barrier, with a store too early, a load too late, samples side by side, too few threads, or too much
    for each."""
    found = printed(compiler("planted", folder=tmp_path))
    right = {name: (in_order(report), apart(report), in_registers(report)) for name, report in found.items()}
    assert right.pop("nothing") == (True, True, True)
    assert right == {
        "no barrier": (False, True, True),
        "a store before all loads": (False, True, True),
        "a load behind the barrier": (False, True, True),
        "samples side by side": (True, False, True),
        "few threads": (True, False, True),
        "more than registers hold": (True, True, False),
    }


# ---- what is in the code --------------------------------------------------------------------------------------------


def test_kernels_hold_nothing_of_other_families(compiled):
    """Exponentials are of the families that have any, accesses of two bytes of levels. Of a record only those words are
    read that a family of the call has a use for (`words` of tests/families): two of constants, which there are in any
    call; to mix images, of cuts no values."""
    words = {of: number for family in RECORDS.values() for of, number in family.words.items()}
    exponentials = sum(of for family in RECORDS.values() if family.exponentials for of in family.words)
    alone, mixing = set(), set()
    for arch, launched, kernel, report in of_kernel(compiled, "mix_kernel", "mask_kernel"):
        constants, accesses = report["constants"], report["accesses"]
        families = Families(constants["FAMILIES"])
        one = families == families & -families
        assert (report["ex2"] > 0) == bool(families & exponentials), (arch, launched)
        assert "odd" in launched or ("ld 2" in accesses) == (Families.LEVELS in families), (arch, launched)
        if kernel == "mask_kernel" and one:
            alone.add(families)
            most = words.get(families, 2)
            bits = constants["N"] // 128 if families & (Families.STORED | Families.LARGE_CELLS) else 0
            assert accesses["ld 4"] == most + bits, (arch, launched, families)
        elif kernel == "mix_kernel" and not families.stored and constants["MASKS"] == 0:
            mixing.add(families)
            most = max(words[of] for of in Families if of in families) - 2 * (families == Families.CUTS)
            shape = constants["SHAPE"]
            masks = {Shape.PAIRS: 2, Shape.TILE: constants["PARTS"]}.get(shape, 2 if constants["ADJOINT"] else 1)
            assert report["words"] == most * masks, (arch, launched, families, report["words"])
    assert alone == set(Families)
    assert mixing == {
        Families.CONSTANTS,
        Families.CUTS,
        Families.CONSTANTS | Families.GAUSSIANS,
        Families.CONSTANTS | Families.BOXES | Families.GAUSSIANS,
    }


def test_nothing_is_on_a_stack(compiled):
    """But in the sampler: libdevice's cosine of float64 keeps 40 bytes there, to reduce large arguments. Where masks
    are stored, or computed by several formulas, ptxas may put two registers aside, to have room for one more block on a
    multiprocessor.

    Not asked of Triton 3.6, whose compilers spill the sampler (500 bytes) and, on one architecture, 8 bytes of a mix.
    """
    names = {of[1] for of in compiled["90"]}
    assert names == {f"{of}_kernel" for of in KERNELS}
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip(f"Triton {triton.__version__}")
    wrong = []
    for arch, launched, kernel, report in of_kernel(compiled, *names):
        branches = kernel == "mix_kernel" and any(of in launched for of in ("bits", "levels", "mixed"))
        allowed = (0, 8) if branches else (40,) if kernel == "sample_kernel" else (0,)
        if report["stack"] not in allowed or report["local"]:
            wrong.append((arch, launched, kernel, report))
    assert not wrong


def test_roots_are_rounded_correctly(compiled):
    found = {root for _, _, _, report in of_kernel(compiled, "sample_kernel") for root in report["sqrt"]}
    assert found == {"sqrt.rn.f64"}


def test_every_loop_carries_what_its_line_says(compiled):
    """As Triton compiles it, for every kernel that is ever launched: what a loop leaves out, no interpreter sees."""
    launched = {
        kernel.function.__name__
        for found in pkgutil.iter_modules(backend.__path__, f"{backend.__name__}.")
        for value in vars(importlib.import_module(found.name)).values()
        for kernel in (value.values() if isinstance(value, dict) else [value])
        if isinstance(kernel, launch.Kernel)
    }
    assert launched == {kernel for _, kernel, _ in compiled["90"]}
    loops = [(report["constants"], report["loops"]) for made in compiled.values() for _, _, report in made]
    assert triton_loops.complaints(Path(backend.__file__).parent, loops) == []


LOOPS = """
@triton.jit
def of(x, n, FLAG: tl.constexpr):
    for i in range(n):  # carries 1 + FLAG: a, b
        while more:  # carries 2: c, more
            pass
    for i in tl.static_range(4):
        for j in range(n):
            pass
"""


TTIR = """
#loc = loc("{0}":3:0)
module {{
  tt.func public @of(%x: !tt.ptr<f32> {{tt.divisibility = 16 : i32}} loc("x"(#loc)), %n: i32 loc("n"(#loc))) {{
    %0:2 = scf.for %i = %c0 to %n step %c1 iter_args(%a = %x, %b = %x) -> (tensor<4xf32>, i32)  : i32 {{
      %1:2 = scf.while (%c = %a, %more = %true) : (tensor<4xf32>, i1) -> (tensor<4xf32>, i1) {{
        scf.condition(%more) %c, %more : tensor<4xf32>, i1 loc(#loc4)
      }} do {{
      ^bb0(%d: tensor<4xf32> loc(#loc3), %go: i1 loc(#loc3)):
        scf.yield %d, %go : tensor<4xf32>, i1 loc(#loc4)
      }} loc(#loc5)
      %2 = scf.if %true -> (i32) {{
        scf.yield %b : i32 loc(#loc3)
      }} else {{
        scf.yield %i : i32 loc(#loc3)
      }} loc(#loc3)
      scf.yield %1#0, %2 : tensor<4xf32>, i32 loc(#loc3)
    }} loc(#loc3)
    scf.for %j = %c0 to %n step %c1  : i32 {{
    }} loc(#loc6)
    tt.return loc(#loc)
  }} loc(#loc)
}} loc(#loc)
#loc1 = loc("{0}":4:19)
#loc2 = loc("{0}":5:14)
#loc3 = loc("a"(#loc1))
#loc4 = loc("more"(#loc2))
#loc5 = loc(callsite(#loc2 at #loc3))
#loc6 = loc("{0}":8:23)
"""


def test_loops_are_counted_and_held_against_their_numbers(tmp_path):
    file = tmp_path / "of.py"

    def complaints(source=LOOPS, constants=({"FLAG": True}, {"FLAG": False})):
        file.write_text(source)
        one = TTIR.replace(", %b = %x) -> (tensor<4xf32>, i32)", ") -> (tensor<4xf32>)")
        made = {True: TTIR, False: one}
        return triton_loops.complaints(
            tmp_path, [(of, triton_loops.carried(made[of["FLAG"]].format(file))) for of in constants]
        )

    numbered = LOOPS.replace("range(n):\n            pass", "range(n):  # carries 0: nothing\n            pass")
    assert triton_loops.carried(TTIR.format(file)) == [[str(file), 5, 2], [str(file), 4, 2], [str(file), 8, 0]]
    assert complaints(numbered) == []
    assert complaints() == [f"{file}:8 does not say how many values it carries"]
    assert complaints(numbered.replace("carries 2", "carries 3")) == [f"{file}:5 carries 2 instead of 3 = 3"]
    assert complaints(numbered, [{"FLAG": True}]) == [f"{file}:4 was compiled for one value of FLAG alone"]
    assert complaints(numbered, []) == [f"{file}:{n} is in no kernel that was compiled" for n in (4, 5, 8)]
    elsewhere = complaints("\n" + numbered)
    assert f"{file}:4 is compiled as a loop and was not found in the source" in elsewhere
    assert f"{file}:9 is in no kernel that was compiled" in elsewhere


# ---- what is compiled anew ------------------------------------------------------------------------------------------


OF_FEW_TYPES = ("finish_kernel", "pixel_sum_kernel")  # bytes that become floats; sums of float32 or float64


def test_what_triton_specialises_on_is_in_the_key(tmp_path):
    """Whatever the launcher takes for the same, Triton does; what Triton compiles anew for a reason, the launcher does.

    Numbers of 64 bits, other types, other alignment of the images: these are such reasons. Otherwise numbers that are
    drawn anew at every step, and where they lie, must not be."""
    found = printed(compiler("keys", folder=tmp_path))
    assert {kernel for kernel, _, _ in found} == {f"{of}_kernel" for of in KERNELS}
    wrong = set()
    for kernel, parameter, pairs in found:
        by_key = {}
        for launchers, tritons in pairs:
            by_key.setdefault(launchers, set()).add(tritons)
        if any(len(tritons) > 1 for tritons in by_key.values()):
            wrong.add((kernel, parameter))
        if parameter in ("src", "dst", "out", "logits") and kernel not in OF_FEW_TYPES:
            assert len({tritons for _, tritons in pairs}) > 4, (kernel, parameter)  # types and alignments
        if parameter in ("seed_value", "p", "batch", "first", "columns", "total"):
            assert len({tritons for _, tritons in pairs}) <= 2, (kernel, parameter)  # 32 or 64 bits
    assert not wrong


def test_what_is_launched_is_what_triton_would_launch(tmp_path):
    """Through a driver that does nothing: the same kernel, the same grid and the same arguments, at other addresses, of
    other sizes, alignments and types."""
    found = printed(compiler("launched", folder=tmp_path))
    kinds = [found[k : k + 3] for k in range(0, len(found), 3)]
    for first, second, tritons in kinds:
        assert first == second == tritons
    of = [first[0] for first, _, _ in kinds]
    assert of[0] == of[1] == of[4]
    assert len(set(of)) == 4  # by alignment, by type, and by how wide numbers are
