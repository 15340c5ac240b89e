"""Builds pybind11 modules in which the shim (csrc/shim) runs CUDA kernels on the CPU.

Needs g++ (or $CXX) and pybind11; `missing()` says what is not there. Modules are kept by a hash of all that goes into
them, in $FUSEDMIX_TEST_CACHE or a folder of the user's own beside the other temporary files.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

CSRC = Path(__file__).resolve().parent.parent / "csrc"
SHIM = (CSRC / "shim" / "log.cpp", CSRC / "shim" / "run.cpp")
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-DFUSEDMIX_SHIM"),
    # As nvcc is told: a product and a sum are rounded twice unless the source says fma.
    "-ffp-contract=off",
    # Two modules with the shim in one process have a record each.
    *(("-fno-gnu-unique",) if sys.platform == "linux" else ()),
)

_modules: dict[str, ModuleType] = {}


def compiler() -> str:
    return os.environ.get("CXX") or "g++"


def missing() -> str | None:
    """Why build() cannot work here, or None."""
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if shutil.which(compiler().split()[0]) is None:
        return f"no C++ compiler: {compiler()}"
    return None


def cache() -> Path:
    path = os.environ.get("FUSEDMIX_TEST_CACHE")
    folder = Path(path) if path else Path(tempfile.gettempdir()) / f"fusedmix-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user; set FUSEDMIX_TEST_CACHE")
    return folder


def build(name: str, sources: Iterable[str | Path], defines: Iterable[str] = ()) -> ModuleType:
    """Compiles `sources` and the shim into the pybind11 module `name` and imports it.

    Args:
        name: as in PYBIND11_MODULE.
        sources: C++ or CUDA files. What they include must be headers: a change in an included .cu is not noticed.
        defines: macros, as "NAME" or "NAME=value".

    Raises:
        RuntimeError: it does not compile; the message is the compiler's.
    """
    files = [Path(source).resolve() for source in (*sources, *SHIM)]
    command = [*compiler().split(), *FLAGS, *_includes(), *(f"-D{define}" for define in defines)]
    keys = [_hash(_setup(), repr(command), str(file), file.read_text()) for file in files]
    key = _hash(name, *keys)
    if key not in _modules:
        target = cache() / f"{name}-{key}" / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
        with (cache() / "lock").open("w") as lock:  # the system lets go of it even if this process is killed
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _link(target, _compile(command, files, keys))
        _modules[key] = _import(name, target)
    return _modules[key]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _setup() -> str:
    """What every object depends on: the compiler, Python, pybind11 and all headers."""
    import pybind11

    headers = sorted(path for pattern in ("*.h", "*.cuh") for path in CSRC.rglob(pattern))
    texts = [f"{path}\0{path.read_text()}" for path in headers]
    return _hash(_version(compiler()), sys.version, pybind11.__version__, *texts)


@functools.cache
def _version(command: str) -> str:
    return _run([*command.split(), "--version"])


def _includes() -> list[str]:
    import pybind11

    # pybind11's own headers are not the place to look for warnings.
    system = [f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]
    return [f"-I{CSRC / 'include'}", f"-I{CSRC / 'shim'}", *system]


def _compile(command: list[str], files: list[Path], keys: list[str]) -> list[Path]:
    objects = [cache() / f"{file.stem}-{key}.o" for file, key in zip(files, keys, strict=True)]

    def compile_one(file: Path, made: Path) -> None:
        if not made.exists():
            partial = made.with_suffix(".partial")
            _run([*command, "-c", "-x", "c++", str(file), "-o", str(partial)])
            partial.rename(made)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, files, objects))
    return objects


def _link(target: Path, objects: list[Path]) -> None:
    target.parent.mkdir(exist_ok=True)
    partial = target.with_suffix(".partial")
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    _run([*compiler().split(), "-shared", *undefined, *map(str, objects), "-o", str(partial)])
    partial.rename(target)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def _import(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
