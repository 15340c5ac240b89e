"""Builds csrc/tests/cuda_test.cpp without CMake: by the compilers and flags that the package itself is built with.

    python -m benchmarks.kernel_test FOLDER [--shim]

Prints the path of the executable. --shim: the CUDA kernels run on the CPU. What FOLDER holds already of the very same
sources, for the GPUs that are present, is not built again: FUSEDMIX_CUDA_ARCHS builds it where there is no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common import ROOT
from fusedmix.backends import native

CSRC = ROOT / "csrc"


def built(folder: Path, archs: Sequence[str] = (), shim: bool = False) -> Path | None:
    """The executable, if there is one of these very sources and flags, and (without --shim) for these GPUs.

    Raises:
        BuildError: no architectures are given or asked for, and there is no GPU.
    """
    wanted = [] if shim else [arch.removesuffix("+PTX").rstrip("af") for arch in _archs(archs)]
    for path in sorted(folder.glob(_target(folder, ["*"], shim).name)):
        if native._runs_on(path.name.rpartition("-")[2].split("."), wanted):
            return path
    return None


def _archs(archs: Sequence[str]) -> list[str]:
    return list(archs) or native._asked_archs() or native._present_archs()


def _target(folder: Path, archs: Sequence[str], shim: bool) -> Path:
    digest = hashlib.sha256(repr((native._HOST_FLAGS, native._NVCC_FLAGS, native._ISAS)).encode())
    for path in sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu")):
        digest.update(path.relative_to(CSRC).as_posix().encode() + b"\0" + path.read_bytes())
    return folder / f"fusedmix_{'shim' if shim else 'cuda'}_test-{digest.hexdigest()[:16]}-{'.'.join(archs)}"


def build(folder: Path, archs: Sequence[str] = (), shim: bool = False, jobs: int = 16) -> Path:
    """The test of the CUDA kernels as an executable.

    Args:
        folder: where everything is written.
        archs: the GPU architectures; none: as FUSEDMIX_CUDA_ARCHS says, or of the GPUs that torch sees.
        shim: run the kernels on the CPU, by csrc/shim. Takes no CUDA.

    Raises:
        BuildError: a compiler is missing.
        RuntimeError: it does not compile; the message is what the compiler said.
    """
    if (known := built(folder, archs, shim)) is not None:
        return known
    archs = [] if shim else _archs(archs)
    cxx = native._cxx()
    includes = [f"-I{CSRC}", f"-I{CSRC / 'include'}", f"-I{CSRC / 'shim'}"]
    if shim:
        compile_cuda = [*cxx, "-std=c++17", "-O2", "-ffp-contract=off", "-DFUSEDMIX_SHIM", *includes, "-xc++", "-c"]
        link, more = [*cxx, "-pthread"], [CSRC / "shim" / "log.cpp", CSRC / "shim" / "run.cpp"]
    else:
        nvcc = native._nvcc()
        host = [f"-ccbin={cxx[0]}"] if len(cxx) == 1 else []
        generate = native._gencode(archs, native._known_archs(nvcc))
        folders = native._pypi_cuda() if any(Path(nvcc).is_relative_to(f) for f in native._pypi_cuda()) else []
        includes += [f"-I{f / 'include'}" for f in folders]
        compile_cuda = [nvcc, *host, *native._NVCC_FLAGS, *generate, *includes, "-c"]
        link, more = [nvcc, *host, *(f"-L{f / 'lib'}" for f in folders), "-cudart=static"], []
    compile_cpp = [*cxx, *native._HOST_FLAGS, *includes, "-c"]

    cpu = sorted(path for name in ("host", "cpu") for path in (CSRC / name).glob("*.cpp"))
    cuda = sorted(path for path in (CSRC / "cuda").iterdir() if path.suffix != ".h")
    kernels = CSRC / "cpu" / "kernels.cpp"
    commands = [[*compile_cpp, *flags, f"-DFUSEDMIX_ISA={isa}", str(kernels)] for isa, flags in native._ISAS]
    commands += [[*compile_cpp, str(path)] for path in cpu if path != kernels]
    commands += [[*compile_cuda, str(path)] for path in (*cuda, CSRC / "tests" / "cuda_test.cpp", *more)]

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = [Path(scratch, f"{n}-{Path(command[-1]).stem}.o") for n, command in enumerate(commands)]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(_run, ([*c, "-o", str(o)] for c, o in zip(commands, objects, strict=True))))
        whole = Path(scratch, "linked")
        _run([*link, *map(str, objects), "-o", str(whole)])
        return whole.replace(_target(folder, archs, shim))  # what a run that was ended left is no executable


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{done.stdout}{done.stderr}".strip() or f"{command[0]} failed")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shim", action="store_true")
    given = parser.parse_args()
    try:
        print(build(given.folder, shim=given.shim))
    except (native.BuildError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
