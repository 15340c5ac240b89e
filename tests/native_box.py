"""What the tests of native builds share: a checkout of its own with compilers that log what they are called with.

The table of sources and flags is the real one; the sources are stubs that compile in no time, and so is torch.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[1]
COMPILER = shutil.which("c++") or shutil.which("g++")
NINJA = shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")

NEEDED = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stubs are made for Linux"),
    pytest.mark.skipif(COMPILER is None or NINJA is None, reason="needs a C++ compiler and ninja"),
]


SOURCES = {
    "include/fusedmix/answer.h": "#define ANSWER 42\n",
    "cpu/dispatch.cpp": 'extern "C" int kernel_generic();\nint dispatch() { return kernel_generic(); }\n',
    "cpu/kernels.cpp": """
        #include <fusedmix/answer.h>
        #define JOIN_(a, b) a##b
        #define JOIN(a, b) JOIN_(a, b)
        extern "C" int JOIN(kernel_, FUSEDMIX_ISA)() { return ANSWER; }
        """,
    "binding/cpu.cpp": """
        int dispatch();
        extern "C" __attribute__((visibility("default"))) int answer() { return dispatch(); }
        """,
    "cuda/kernels.cu": "#include <fusedmix/answer.h>\nint kernel() { return ANSWER + 1; }\n",
    "cuda/step.cpp": "int step() { return 0; }\n",
    "host/sample.cpp": "int sample() { return 0; }\n",
    "binding/cuda.cpp": """
        int kernel();
        extern "C" __attribute__((visibility("default"))) int answer() { return kernel(); }
        """,
    "tests/case.cpp": "",
    "shim/shim.h": "",
}

TORCH = """
import ctypes, os
from pathlib import Path
from types import SimpleNamespace

__version__ = "2.99.0"
version = SimpleNamespace(cuda=os.environ.get("STUB_CUDA"))
capability = eval(os.environ.get("STUB_GPU", "None"))
cuda = SimpleNamespace(
    is_available=lambda: capability is not None, device_count=lambda: 1, get_device_capability=lambda index: capability
)
ops = SimpleNamespace(load_library=ctypes.CDLL)
for name in ("libtorch_cpu.so", "libtorch_cuda.so"):
    ctypes.CDLL(str(Path(__file__).parent / "lib" / name), ctypes.RTLD_GLOBAL)
"""

CXX = """#!/bin/sh
echo "c++ $*" >> "$STUB_LOG"
sleep ${STUB_SLEEP:-0}
while [ -n "$STUB_HOLD" ] && [ -e "$STUB_HOLD" ]; do sleep 0.1; done
exec REAL "$@"
"""

# It takes the flags that only nvcc knows out of the command, and has the C++ compiler do the rest.
NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release VERSION, V0"; exit ;;
--list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_100\\ncompute_120\\n'; exit ;;
esac
echo "nvcc $*" >> "$STUB_LOG"
for flag; do
    shift
    case "$flag" in
    -gencode=*|-Xcompiler=*|-ccbin=*|--fmad=*|-cudart=*|-Xlinker=*) ;;
    *.cu) set -- "$@" -x c++ "$flag" ;;
    *) set -- "$@" "$flag" ;;
    esac
done
exec REAL -fPIC "$@"
"""

LOAD = """
from fusedmix.backends import native
try:
    native.load("cpp")
except native.BuildError as error:
    print(type(error).__name__, error)
else:
    import ctypes
    print(ctypes.CDLL(str(native._loaded["cpp"])).answer())
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("REAL", str(COMPILER)))
    path.chmod(0o755)
    return str(path)


def stub_torch(base: Path) -> Path:
    """Made once in the folder of all tests."""
    folder = base / "stub" / "torch"
    if (folder / "lib" / "libtorch_cuda.so").exists():
        return folder
    write(folder, {"__init__.py": TORCH, "lib/empty.cpp": "", "include/empty": ""})
    for name in ("libtorch_cpu.so", "libtorch_cuda.so"):
        command = [str(COMPILER), "-shared", f"-Wl,-soname,{name}", "-o", name, "empty.cpp"]
        subprocess.run(command, cwd=folder / "lib", check=True)
    return folder


def module_of(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Box:
    """A checkout of its own, with a stub of torch, a compiler that logs what it is called with, and a cache."""

    def __init__(self, root: Path, stub_torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.cache, self.log = root, root / "cache", root / "compiler.log"
        self.csrc = root / "csrc"
        self.monkeypatch = monkeypatch
        write(self.csrc, SOURCES)
        write(root, {"fusedmix/__init__.py": "", "fusedmix/backends/__init__.py": ""})
        shutil.copy(REPO / "fusedmix" / "version.py", root / "fusedmix")
        shutil.copy(REPO / "fusedmix" / "backends" / "native.py", root / "fusedmix" / "backends")
        (root / "torch").symlink_to(stub_torch)
        for name in list(os.environ):
            if name.startswith(("FUSEDMIX_", "STUB_", "CUDA", "MAX_JOBS")):
                monkeypatch.delenv(name)
        self.setenv(CXX=script(root / "bin" / "c++", CXX), STUB_LOG=str(self.log), PYTHONPATH=str(root))
        self.setenv(FUSEDMIX_CACHE_DIR=str(self.cache))
        self.setenv(PYTHONDONTWRITEBYTECODE="1")  # An edit within the second must be seen.

    def native(self, package: Path | None = None) -> ModuleType:
        """The module as a new process has it, but in this one; of the checkout's package, or of another."""
        module = module_of("fresh", REPO / "fusedmix" / "backends" / "native.py")
        module._PACKAGE = package or self.root / "fusedmix"
        module.torch = module_of("stub_torch", self.root / "torch" / "__init__.py")
        return module

    def setenv(self, **variables: str) -> None:
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)

    def calls(self, word: str = "") -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if word in line]

    def process(self, code: str = LOAD, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.root,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def nvcc(self, folder: str, version: str) -> str:
        return script(self.root / folder / "bin" / "nvcc", NVCC.replace("VERSION", version))

    def wait_for(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def new_box(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Box:
    """What both files make a fixture of."""
    return Box(tmp_path / "a folder", stub_torch(tmp_path_factory.getbasetemp()), monkeypatch)


def answer(native: ModuleType, name: str = "cpp") -> int:
    native.load(name)
    return int(ctypes.CDLL(str(native._loaded[name])).answer())


def reason(native: ModuleType, name: str = "cpp") -> str:
    with pytest.raises(native.BuildError) as caught:
        native.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)
