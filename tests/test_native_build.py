"""How the native libraries are built at their first use, cached, and shared between processes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from native_box import NEEDED, NINJA, SOURCES, Box, answer, new_box, reason, script, write

pytestmark = NEEDED
box = pytest.fixture(new_box)

# ---- First use ----


def test_first_use_builds_and_says_so(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    native = box.native()
    assert native.why_not("cpp") is None
    assert native.status("cpp") == f"will be built at first use (about {native.LIBRARIES['cpp'].takes})"
    assert not box.calls()
    assert not box.cache.exists()
    assert answer(native) == 42
    first, last = capsys.readouterr().err.splitlines()
    [folder] = [path for path in box.cache.iterdir() if path.is_dir()]
    assert first.endswith(f"about {native.LIBRARIES['cpp'].takes}, into {folder}")
    assert " s" in last
    assert native.status("cpp") == f"cached: {folder / 'fusedmix_cpp.so'}"
    for word in (native.platform.machine(), "torch2.99.0", native._hash("cpp")):
        assert word in folder.name

    native.load("cpp")  # Nothing happens the second time.
    assert len(box.calls("-shared")) == 1
    assert capsys.readouterr().err == ""


def test_a_cached_library_needs_no_tools(
    box: Box, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    box.native().load("cpp")
    capsys.readouterr()
    calls = len(box.calls())
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("FUSEDMIX_JIT", "0")
    native = box.native()
    monkeypatch.setattr(native, "subprocess", None)
    monkeypatch.setattr(native, "_ninja", None)
    assert native.status("cpp").startswith("cached: ")
    assert answer(native) == 42
    assert len(box.calls()) == calls
    assert capsys.readouterr().err == ""


def test_flags_by_instruction_set(box: Box) -> None:
    native = box.native()
    native.load("cpp")
    kernels = box.calls("kernels.cpp")
    [generic] = [line for line in kernels if "-DFUSEDMIX_ISA=generic" in line]
    assert "-mavx" not in generic
    assert all("-ffp-contract=off" in line and "fast" not in line for line in kernels)
    if native.platform.machine() == "x86_64":
        [avx2] = [line for line in kernels if "-DFUSEDMIX_ISA=avx2" in line]
        assert "-mavx2 -mfma -mf16c" in avx2
        [link] = box.calls("-shared")
        objects = [word for word in link.split() if word.endswith(".o")]
        assert avx2.split()[-1] == objects[-1]  # It is linked after all that any CPU runs.


def test_a_changed_header_is_another_library(box: Box) -> None:
    assert answer(box.native()) == 42
    write(box.csrc, {"include/fusedmix/answer.h": "#define ANSWER 7\n"})
    assert box.native().status("cpp").startswith("will be built")
    assert answer(box.native()) == 7
    write(box.csrc, SOURCES)
    assert answer(box.native()) == 42
    assert len(box.calls("-shared")) == 2


def test_a_developer_test_is_no_part_of_a_library(box: Box) -> None:
    before = box.native()._hash("cpp")
    write(box.csrc, {"tests/case.cpp": "int main() {}", "cpu/notes.txt": "x", "cuda/kernels.cu": ""})
    assert box.native()._hash("cpp") == before


def test_importing_neither_builds_nor_looks(tmp_path: Path) -> None:
    code = (
        "import sys, fusedmix, fusedmix.backends.native\n"
        "assert 'torch.utils.cpp_extension' not in sys.modules\n"
        "assert not fusedmix.backends.native._loaded\n"
    )
    environment = {**os.environ, "FUSEDMIX_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not (tmp_path / "cache").exists()


def test_a_library_on_torchs_stable_abi(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    binding = """
        #include <torch/csrc/stable/library.h>
        #include <torch/csrc/stable/tensor.h>
        torch::stable::Tensor same(torch::stable::Tensor t) { return t; }
        STABLE_TORCH_LIBRARY_IMPL(fusedmix_test_native_build, CPU, m) { m.impl("same", TORCH_BOX(&same)); }
        """
    write(box.csrc, {"binding/cpu.cpp": binding})
    native = box.native()
    monkeypatch.setattr(native, "torch", torch)
    library = torch.library.Library("fusedmix_test_native_build", "DEF")
    library.define("same(Tensor t) -> Tensor")
    native.load("cpp")
    x = torch.arange(3)
    assert torch.equal(torch.ops.fusedmix_test_native_build.same(x), x)


# ---- Many processes ----


@pytest.mark.thorough
def test_eight_processes_build_once(box: Box) -> None:
    started = [box.process(STUB_SLEEP="1") for _ in range(8)]
    said = [process.communicate(timeout=60) for process in started]
    assert [out for out, _ in said] == ["42\n"] * 8
    assert len(box.calls("-shared")) == 1
    assert len(box.calls("binding/cpu.cpp")) == 1
    assert sum("building" in err for _, err in said) == 1
    assert sum("waiting for another process" in err for _, err in said) >= 1


def test_processes_that_wait_share_a_failure(box: Box) -> None:
    write(box.csrc, {"binding/cpu.cpp": "int x = ;\n"})
    started = [box.process(STUB_SLEEP="2") for _ in range(3)]
    outs = [process.communicate(timeout=60)[0] for process in started]
    assert all("error: expected primary-expression" in out and out.count("\n") == 1 for out in outs)
    assert len(box.calls("binding/cpu.cpp")) == 1


def test_a_killed_build_blocks_nobody(box: Box) -> None:
    hold = box.root / "hold"
    hold.touch()
    victim = box.process(STUB_HOLD=str(hold))
    try:
        box.wait_for(box.calls)
        victim.kill()  # It is killed alone: its compilers go on.
        victim.communicate(timeout=60)
        [left] = box.cache.glob("*.building-*")
        out, err = box.process().communicate(timeout=60)
        assert out == "42\n", err
        assert not left.exists()
        assert "waiting" not in err
    finally:
        hold.unlink()
        victim.kill()
    assert not list(box.cache.glob("*.building-*"))


# ---- Reasons ----


def test_a_failure_is_remembered(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    write(box.csrc, {"cpu/dispatch.cpp": "int dispatch() { return nonsense; }\n"})
    native = box.native()
    assert native.why_not("cpp") is None
    why = reason(native)
    assert f"{box.csrc}/cpu/dispatch.cpp:1:" in why
    assert "error: 'nonsense' was not declared" in why
    [log] = box.cache.glob("*.failed.log")
    assert str(log) in why
    assert "FAILED" in log.read_text()
    assert not list(box.cache.glob("*/fusedmix_cpp.so"))

    calls = len(box.calls())
    assert reason(native) == why
    assert native.why_not("cpp") == why
    assert native.status("cpp") == why
    assert len(box.calls()) == calls
    assert capsys.readouterr().err.count("\n") == 1  # It said that it was building; the caller explains the failure.

    again = box.native()  # Another process tries again.
    assert again.why_not("cpp") is None
    assert reason(again) == why


def test_a_missing_symbol_is_a_failed_build(box: Box) -> None:
    write(box.csrc, {"cpu/dispatch.cpp": "int elsewhere();\nint dispatch() { return elsewhere(); }\n"})
    assert "undefined reference to `elsewhere()'" in reason(box.native())


def test_a_library_that_cannot_be_loaded(box: Box) -> None:
    native = box.native()
    path, _ = native._cached("cpp")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF")
    digest = hashlib.sha256(b"\x7fELF").hexdigest()
    path.with_name(path.name + ".sha256").write_text(digest)  # So the file is as it was built.
    why = reason(native)
    assert why.startswith(f"{path} cannot be loaded (")
    assert "delete it" in why


def replaced(path: Path, content: bytes) -> None:
    """Another file of that name: who has loaded the old one keeps it, and is not ended by a signal at its exit."""
    path.unlink()
    path.write_bytes(content)


def truncate(path: Path) -> None:
    replaced(path, path.read_bytes()[:4096])


def corrupt(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    replaced(path, whole)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        corrupt,
        lambda path: path.write_bytes(b""),
        lambda path: path.with_name(path.name + ".sha256").unlink(),
        lambda path: path.with_name(path.name + ".sha256").write_text(""),
    ],
    ids=["truncated", "corrupted", "empty", "no digest", "empty digest"],
)
def test_a_damaged_library_is_built_anew(box: Box, damage: Callable[[Path], object]) -> None:
    """A truncated one would end the process that loads it by a signal: so it is loaded in processes of their own."""
    out, err = box.process().communicate(timeout=60)
    assert out == "42\n", err
    path, _ = box.native()._cached("cpp")
    damage(path)
    assert "will be built" in box.native().status("cpp")
    first = len(box.calls())
    process = box.process()
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("42\n", 0), err
    assert f"{path} is damaged: it is built anew" in err
    assert len(box.calls()) == 2 * first
    out, err = box.process().communicate(timeout=60)
    assert (out, err) == ("42\n", "")
    assert len(box.calls()) == 2 * first


def test_a_damaged_library_where_none_is_built(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(box.native()) == 42
    truncate(box.native()._cached("cpp")[0])
    monkeypatch.setenv("FUSEDMIX_JIT", "0")
    assert "neither built ahead nor cached" in reason(box.native())


def test_a_damaged_library_that_was_built_ahead(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has not the size that pip wrote down."""
    native = box.native()
    path = box.root / "fusedmix" / "_native" / native.ahead_file("cpp")
    path.parent.mkdir()
    native.build("cpp", path, path.parent)

    class File(importlib.metadata.PackagePath):
        size = path.stat().st_size

        def locate(self) -> Path:
            return box.root / self

    recorded = [File("fusedmix", "_native", path.name), File("fusedmix", "version.py")]
    monkeypatch.setattr(importlib.metadata, "files", lambda name: recorded)
    assert answer(box.native()) == 42
    truncate(path)
    assert f"{path} is damaged: it has not the {File.size} bytes" in reason(box.native())
    assert "install again" in box.native().status("cpp")


def test_jit_forbidden(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDMIX_JIT", "0")
    native = box.native()
    assert "FUSEDMIX_JIT=0" in native.why_not("cpp")
    for _ in range(2):
        with pytest.raises(native.JitForbiddenError, match="FUSEDMIX_JIT=0"):
            native.load("cpp")
    assert not box.calls()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"CXX": "", "PATH": ""}, "no C++ compiler is found: install one"),
        ({"CXX": "no-such-compiler -m64"}, "CXX=no-such-compiler -m64 asks for is not found"),
        ({"FUSEDMIX_CACHE_DIR": f"{__file__}/cache"}, "cannot be written"),
        ({"FUSEDMIX_CACHE_DIR": "/proc/no/cache"}, "set FUSEDMIX_CACHE_DIR"),
    ],
)
def test_what_is_missing(box: Box, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: str) -> None:
    native = box.native()
    monkeypatch.setattr(native, "_ninja", lambda: NINJA)
    box.setenv(**variables)
    if "/proc" not in variables.get("FUSEDMIX_CACHE_DIR", ""):  # Root seems to be allowed, until it writes.
        assert words in native.why_not("cpp")
        assert native.status("cpp") == native.why_not("cpp")
    assert words in reason(native)
    assert not box.calls()


def test_a_cache_of_somebody_else(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    native = box.native()
    # Root is let in everywhere, and shutil.which asks for other rights.
    monkeypatch.setattr(native.os, "access", lambda _, mode: mode != os.W_OK | os.X_OK)
    why = f"the cache folder {box.cache} cannot be written (Permission denied): set FUSEDMIX_CACHE_DIR"
    assert native.why_not("cpp") == why
    assert reason(native) == why


def test_compilers_by_name(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    native = box.native()
    monkeypatch.setenv("CXX", f"'{os.environ['CXX']}' -m64")
    assert native._cxx() == [str(box.root / "bin" / "c++"), "-m64"]
    monkeypatch.delenv("CXX")
    assert Path(native._cxx()[0]).name in ("c++", "g++")


def test_ninja(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    native = box.native()
    monkeypatch.setitem(sys.modules, "ninja", None)
    monkeypatch.setenv("PATH", str(Path(str(NINJA)).parent))
    assert native._ninja() == str(Path(str(NINJA)).absolute())
    monkeypatch.setenv("PATH", "")
    assert native.why_not("cpp") == "ninja is not found: pip install ninja"
    package = ModuleType("ninja")
    package.BIN_DIR = str(Path(script(box.root / "scripts" / "ninja", "#!/bin/sh")).parent)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ninja", package)
    assert native._ninja() == f"{package.BIN_DIR}/ninja"


def test_no_home(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    native = box.native()
    monkeypatch.delenv("FUSEDMIX_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(box.root / "xdg"))
    assert native._cache_root() == box.root / "xdg" / "fusedmix"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(box.root))
    assert native._cache_root() == box.root / ".cache" / "fusedmix"

    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native.Path, "expanduser", homeless)
    assert "set FUSEDMIX_CACHE_DIR" in native.why_not("cpp")


def test_elsewhere_nothing_is_built(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    native = box.native()
    monkeypatch.setattr(native.sys, "platform", "win32")
    assert native.why_not("cpp") == "the native libraries are built on Linux and macOS only: under Windows, use WSL"


def test_no_sources(box: Box) -> None:
    (box.csrc / "binding" / "cuda.cpp").unlink()
    assert box.native().why_not("cuda") == "it is not part of this release"
    shutil.rmtree(box.csrc)
    assert "there is no" in box.native().why_not("cpp")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("a.cu(3): warning #177-D: unused\na.cu(4): error: no\na.cu(5): error: other", "a.cu(4): error: no"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_1'", "nvcc fatal   : Unsupported gpu architecture"),
        ("g++ -o error.o\ng++: fatal error: Killed signal", "g++: fatal error: Killed"),
        ("/usr/bin/ld: cannot find -lx\ncollect2: error: ld returned 1", "/usr/bin/ld: cannot find -lx"),
        ("a.h:1: fatal error: cuda_runtime.h: No such file or directory", "lacks its headers: pip install"),
        ("something\nelse", "else"),
        ("", "ninja failed"),
    ],
)
def test_the_line_that_explains(box: Box, tmp_path: Path, said: str, line: str) -> None:
    log = tmp_path / "log"
    log.write_text(said)
    found = box.native()._first_error(log)
    assert line in found
    assert "\n" not in found


# ---- CUDA ----


def test_cuda_is_built_for_the_gpus_here(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.setenv(STUB_CUDA="13.2", STUB_GPU="(9, 0)", CUDACXX=box.nvcc("toolkit", "13.0"))
    native = box.native()
    assert native.why_not("cuda") is None
    assert answer(native, "cuda") == 43
    [kernels] = box.calls("kernels.cu")
    assert kernels.count("-gencode") == 1
    assert "-gencode=arch=compute_90,code=sm_90 " in kernels
    assert "--fmad=false" in kernels
    [link] = box.calls("-shared")
    assert "-ltorch_cuda" in link
    assert link.startswith("nvcc")
    assert "cuda13.2-sm90" in native.status("cuda")

    monkeypatch.delenv("CUDACXX")
    monkeypatch.setenv("PATH", "")
    cached = box.native()
    assert cached.why_not("cuda") is None
    assert answer(cached, "cuda") == 43


def test_architectures_by_name(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.setenv(STUB_CUDA="13.2", CUDACXX=box.nvcc("toolkit", "13.0"))
    native = box.native()
    assert native.ahead_archs() == ["80", "90", "100", "120+PTX"]
    assert 'FUSEDMIX_CUDA_ARCHS="90"' in native.status("cuda")  # There is no GPU here.
    monkeypatch.setenv("FUSEDMIX_CUDA_ARCHS", "8.0; 9.0a,12.0+ptx")
    assert native.ahead_archs() == ["80", "90a", "120+PTX"]
    assert native._gencode(native.ahead_archs(), [80, 90, 120]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]
    assert "sm80.90a.120+PTX" in str(native._cached("cuda")[0])
    monkeypatch.setenv("FUSEDMIX_CUDA_ARCHS", "Hopper")
    assert "FUSEDMIX_CUDA_ARCHS must be a list" in reason(native, "cuda")


def test_a_gpu_that_torch_cannot_use(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.setenv(STUB_CUDA="13.2", STUB_GPU="(9, 0)")
    native = box.native()

    def forked(_: int) -> tuple[int, int]:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.\nUse spawn.")

    monkeypatch.setattr(native.torch.cuda, "get_device_capability", forked)
    assert reason(native, "cuda") == "torch cannot use the GPU: Cannot re-initialize CUDA in forked subprocess."


def test_a_gpu_that_nvcc_does_not_know(box: Box) -> None:
    native = box.native()
    assert native._gencode(["103", "110"], [80, 90]) == ["-gencode=arch=compute_90,code=compute_90"]
    with pytest.raises(native.BuildError, match=r"from 8\.0 on, this one is 7\.5"):
        native._gencode(["75"], [80, 90])


@pytest.mark.parametrize(
    ("built", "gpus", "runs"),
    [
        (["80"], ["86"], True),
        (["80", "90"], ["75"], False),
        (["80", "90"], ["80", "90"], True),
        (["80"], ["80", "90"], False),
        (["80+PTX"], ["90"], True),
        (["90a"], ["90"], True),
        (["100", "90a"], ["103"], True),
        (["120+PTX"], ["100"], False),
    ],
)
def test_which_gpus_a_library_runs_on(box: Box, built: list[str], gpus: list[str], runs: bool) -> None:
    assert box.native()._runs_on(built, gpus) is runs


def test_the_nvcc_that_fits_torch(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDMIX_CUDA_ARCHS", "90")
    assert box.native().why_not("cuda") == "this torch was built without CUDA"

    monkeypatch.setenv("STUB_CUDA", "13.2")
    native = box.native()
    monkeypatch.setattr(native, "_ninja", lambda: NINJA)
    monkeypatch.setattr(native, "_pypi_cuda", list)
    candidates = native._nvcc_candidates
    monkeypatch.setattr(
        native, "_nvcc_candidates", lambda: (path for path in candidates() if not path.startswith("/usr/local"))
    )
    monkeypatch.setenv("PATH", "")
    assert native.why_not("cuda") == 'no nvcc is found: pip install "cuda-toolkit[nvcc,cccl]", or set CUDACXX'

    old = box.nvcc("old", "12.4")
    monkeypatch.setenv("CUDA_HOME", str(box.root / "old"))
    why = native.why_not("cuda")
    assert why.startswith(f"nvcc is CUDA 12.4, torch was built for CUDA 13.2 ({old})")
    assert reason(native, "cuda") == why

    fits = box.nvcc("packages/cu13", "13.3")
    monkeypatch.setattr(native, "_pypi_cuda", lambda: [box.root / "packages" / "cu13"])
    assert native._nvcc() == fits
    monkeypatch.setenv("CUDACXX", old)  # Where one is asked for by name, nothing else is tried.
    with pytest.raises(native.BuildError, match=r"CUDA 12\.4"):
        native._nvcc()
    monkeypatch.setenv("CUDACXX", script(box.root / "broken", "#!/no/such/interpreter"))
    with pytest.raises(native.BuildError, match="no nvcc is found"):
        native._nvcc()
    monkeypatch.setenv("STUB_CUDA", "12.8")
    older = box.native()
    assert older._install_nvcc() == "install the CUDA 12.8 toolkit"  # PyPI has none of that version.


def test_pypis_nvcc_finds_the_headers_of_another_environment(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.setenv(STUB_CUDA="13.2", FUSEDMIX_CUDA_ARCHS="90")
    fits = box.nvcc("one/nvidia/cu13", "13.2")
    (box.root / "two/nvidia/cu13/include").mkdir(parents=True)
    native = box.native()
    monkeypatch.setattr(native, "_pypi_cuda", lambda: [box.root / f"{n}/nvidia/cu13" for n in ("one", "two")])
    native.load("cuda")
    [kernels] = box.calls("kernels.cu")
    assert f"-I{box.root}/two/nvidia/cu13/include" in kernels
    assert native._nvcc() == fits
