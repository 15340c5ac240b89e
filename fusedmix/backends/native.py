"""The native libraries: what they are built from, where a built one lies, and how one gets loaded.

One table, LIBRARIES, serves both ways of building: at first use, into a cache; and ahead, by setup.py, into the
package. setup.py runs this file by itself, before the package is installed: it must import nothing of fusedmix.

    FUSEDMIX_JIT=0           never compile; what is built ahead or cached still loads
    FUSEDMIX_CACHE_DIR       where libraries built at first use are kept, instead of ~/.cache/fusedmix
    FUSEDMIX_CUDA_ARCHS      the GPU architectures to build for, such as "80;90;120+PTX"
    CXX, CUDACXX, CUDA_HOME  the compilers to use
    MAX_JOBS                 how many compilers may run at once
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

Name = Literal["cpp", "cuda"]
_PACKAGE = Path(__file__).resolve().parents[1]


class BuildError(RuntimeError):
    """A native library can be neither loaded nor built; the message is one line that says why."""


class JitForbiddenError(BuildError):
    """A library would have to be built, which FUSEDMIX_JIT=0 forbids."""


# ---- What is built, and how -----------------------------------------------------------------------------------------

# Numbers come out the same whatever the compiler and its version: nothing is contracted, nothing reassociated (the
# sources write fma where they mean it). Nobody reads errno or floating-point exceptions, which keep loops from being
# vectorised.
_HOST_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
# The stable ABI as of torch 2.10: whatever torch the headers come from, the library runs on every later one. To check
# and convert arguments -O1 is enough: more takes the compiler nearly twice as long.
_TORCH_FLAGS = ("-O1", "-DTORCH_TARGET_VERSION=0x020a000000000000")
# Its -O is for the code of the host, which asks for launches. That of GPUs is always optimised.
_NVCC_FLAGS = ("-O1", "-std=c++17", "--fmad=false", f"-Xcompiler={','.join(_HOST_FLAGS[2:])}")

# Linux: the libraries are there to find a missing symbol when linking rather than when loading; at run time they are
# torch's own, long loaded. macOS has no such order of search, and takes the symbols from whoever has them.
_LINK_FLAGS = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-Wl,--no-undefined", "-ltorch_cpu")
# The static runtime (nvcc's default): torch's packages bring no libcudart.so to link to. Its symbols stay private;
# the names of what is private, half a megabyte of them, are left out (-s).
_NVCC_LINK_FLAGS = ("-cudart=static", "-Xlinker=--no-undefined,--exclude-libs=ALL,-s", "-ltorch_cuda", "-ltorch_cpu")

# What takes longest to compile is compiled first: else one core is at it when all others have nothing left to do.
_LONGEST = (
    *("kernels.cpp", "finish.cu", "sample.cu"),
    *("mix_bfloat16.cu", "mix_float.cu", "mix_float16.cu", "mix_integers.cu"),
)

# When built ahead. One for each generation: a later chip of a generation runs what was built for an earlier one.
_AHEAD_ARCHS = ("80", "90", "100", "120")
_SOURCE_SUFFIXES = (".h", ".cpp", ".cuh", ".cu")


class Unit(NamedTuple):
    """Sources that are compiled by the same flags, each to an object of its own."""

    sources: str  # a path below csrc, or a pattern for those that no other unit names
    flags: tuple[str, ...]


class Library(NamedTuple):
    compiler: Literal["c++", "nvcc"]  # also links
    units: tuple[Unit, ...]
    link_flags: tuple[str, ...]
    inputs: tuple[str, ...]  # patterns of everything its meaning depends on
    takes: str  # about how long it takes to build at first use


# csrc/cpu/dispatch.cpp chooses among them at run time.
_ISAS: tuple[tuple[str, tuple[str, ...]], ...] = (("generic", ()),)
if platform.machine().lower() in ("x86_64", "amd64"):
    _ISAS += (("avx2", ("-mavx2", "-mfma", "-mf16c")),)

LIBRARIES: dict[Name, Library] = {
    "cpp": Library(
        "c++",
        (
            # The plain ones first: of a function that several objects hold (a template of the standard library), the
            # linker keeps the first, and one for AVX2 would kill a CPU without it.
            Unit("binding/cpu.cpp", (*_HOST_FLAGS, *_TORCH_FLAGS)),
            Unit("cpu/*.cpp", _HOST_FLAGS),
            Unit("host/*.cpp", _HOST_FLAGS),
            *(Unit("cpu/kernels.cpp", (*_HOST_FLAGS, f"-DFUSEDMIX_ISA={isa}", *flags)) for isa, flags in _ISAS),
        ),
        _LINK_FLAGS,
        ("include/**/*", "host/*", "cpu/*", "binding/cpu.cpp", "binding/*.h"),
        "30 s to 1 min on two cores",
    ),
    "cuda": Library(
        "nvcc",
        (
            # torch declares its current stream only where USE_CUDA is defined.
            Unit("binding/cuda.cpp", (*_NVCC_FLAGS, *_TORCH_FLAGS, "-DUSE_CUDA")),
            Unit("cuda/*.cu", _NVCC_FLAGS),
            Unit("cuda/*.cpp", _NVCC_FLAGS),
            Unit("host/*.cpp", _NVCC_FLAGS),
        ),
        _NVCC_LINK_FLAGS,
        ("include/**/*", "host/*", "cuda/*", "binding/cuda.cpp", "binding/*.h"),
        "2 min",
    ),
}


def _sources() -> Path:
    """csrc: inside an installed package, beside the package in a checkout."""
    for folder in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc"):
        if folder.is_dir():
            return folder
    raise BuildError(f"the C++ sources are not part of this installation: there is no {_PACKAGE / 'csrc'}")


def _translation_units(name: Name) -> list[tuple[Path, tuple[str, ...]]]:
    """Every file to compile, with its flags."""
    library, root = LIBRARIES[name], _sources()
    named = {root / unit.sources for unit in library.units}
    found = []
    for unit in library.units:
        own = root / unit.sources
        paths = [path for path in sorted(root.glob(unit.sources)) if path == own or path not in named]
        if not paths:
            raise BuildError("it is not part of this release")
        found += [(path, unit.flags) for path in paths]
    return found


def _hash(name: Name) -> str:
    """Of the sources of a library, their headers and their flags."""
    library, root = LIBRARIES[name], _sources()
    _translation_units(name)
    paths = {path for pattern in library.inputs for path in root.glob(pattern) if path.suffix in _SOURCE_SUFFIXES}
    digest = hashlib.sha256(repr(library).encode())
    for path in sorted(paths):
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


# ---- Tools ----------------------------------------------------------------------------------------------------------


class _Tools(NamedTuple):
    ninja: str
    cxx: list[str]
    nvcc: str | None


def _which(program: str, path: str | None = None) -> str | None:
    found = shutil.which(program, path=path)
    return found and str(Path(found).absolute())  # builds run in a folder of their own


def _ninja() -> str:
    found = None
    with contextlib.suppress(ImportError, AttributeError):
        # The PyPI package, also of an environment that is not activated and so not on PATH.
        found = _which("ninja", importlib.import_module("ninja").BIN_DIR)
    found = found or _which("ninja")
    if found is None:
        raise BuildError("ninja is not found: pip install ninja")
    return found


def _cxx() -> list[str]:
    asked = os.environ.get("CXX", "").strip()
    if asked:
        first, *more = [asked] if _which(asked) else shlex.split(asked)  # a path, or words: "ccache g++"
        found = _which(first)
        if found is None:
            raise BuildError(f"the C++ compiler that CXX={asked} asks for is not found")
        return [found, *more]
    for candidate in ("c++", "g++", "clang++"):
        found = _which(candidate)
        if found is not None:
            return [found]
    how = "xcode-select --install" if sys.platform == "darwin" else "apt install g++"
    raise BuildError(f"no C++ compiler is found: install one ({how}, conda install cxx-compiler) or set CXX")


def _nvcc() -> str:
    """The first nvcc of the CUDA version that torch was built for."""
    cuda = torch.version.cuda
    if cuda is None:
        raise BuildError("this torch was built without CUDA")
    major = cuda.partition(".")[0]
    wrong = None
    for path in _nvcc_candidates():
        found = _which(path)
        version = found and _nvcc_version(found)
        if found and version:
            if version.partition(".")[0] == major:
                return found
            wrong = wrong or f"nvcc is CUDA {version}, torch was built for CUDA {cuda} ({found}): {_install_nvcc()}"
    raise BuildError(wrong or f"no nvcc is found: {_install_nvcc()}, or set CUDACXX")


def _install_nvcc() -> str:
    # The packages for CUDA 12 on PyPI hold no nvcc.
    if _cuda_major() == "12":
        return f"install the CUDA {torch.version.cuda} toolkit"
    return 'pip install "cuda-toolkit[nvcc,cccl]"'


def _nvcc_candidates() -> Iterator[str]:
    if os.environ.get("CUDACXX"):
        yield os.environ["CUDACXX"]
        return
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield str(Path(os.environ[variable], "bin", "nvcc"))
    for folder in _pypi_cuda():
        yield str(folder / "bin" / "nvcc")
    yield "nvcc"
    yield "/usr/local/cuda/bin/nvcc"


def _pypi_cuda() -> list[Path]:
    """Where PyPI's packages put CUDA: several folders where an environment sees the packages of another one."""
    namespace = importlib.util.find_spec("nvidia")
    locations = (namespace and namespace.submodule_search_locations) or ()
    return [folder for folder in (Path(location, f"cu{_cuda_major()}") for location in locations) if folder.is_dir()]


@functools.cache
def _nvcc_version(path: str) -> str | None:
    found = re.search(r"release (\d+\.\d+)", _output(path, "--version"))
    return found and found[1]


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _tools(name: Name) -> _Tools:
    return _Tools(_ninja(), _cxx(), _nvcc() if LIBRARIES[name].compiler == "nvcc" else None)


# ---- GPU architectures ----------------------------------------------------------------------------------------------


def _asked_archs() -> list[str]:
    """FUSEDMIX_CUDA_ARCHS, as ["80", "90a", "120+PTX"]."""
    archs = []
    for word in re.split(r"[;,\s]+", os.environ.get("FUSEDMIX_CUDA_ARCHS", "").strip()):
        match = re.fullmatch(r"(\d+)\.?(\d[af]?)(\+ptx)?", word, re.IGNORECASE)
        if match:
            archs.append(match[1] + match[2].lower() + (match[3] or "").upper())
        elif word:
            raise BuildError(f'FUSEDMIX_CUDA_ARCHS must be a list such as "80;90;120+PTX", but holds {word!r}')
    return archs


def _present_archs() -> list[str]:
    """Those of the GPUs that torch sees; this starts CUDA in the process."""
    if not torch.cuda.is_available():
        raise BuildError('torch finds no GPU (FUSEDMIX_CUDA_ARCHS="90" builds for one that is not here)')
    try:
        found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    except RuntimeError as error:  # in a child of a process that used CUDA before it forked, say
        raise BuildError(f"torch cannot use the GPU: {str(error).splitlines()[0]}") from error
    return [f"{major}{minor}" for major, minor in sorted(found)]


def ahead_archs() -> list[str]:
    """The GPU architectures that a library built ahead is for."""
    asked = _asked_archs()
    if asked:
        return asked
    known = _known_archs(_nvcc())
    archs = [arch for arch in _AHEAD_ARCHS if int(arch) in known] or [str(known[-1])]
    return [*archs[:-1], f"{archs[-1]}+PTX"]  # chips that are still to come compile that when they load it


@functools.cache
def _known_archs(nvcc: str) -> list[int]:
    known = sorted({int(arch) for arch in re.findall(r"compute_(\d+)", _output(nvcc, "--list-gpu-arch"))})
    if not known:
        raise BuildError(f"{nvcc} does not say which GPUs it compiles for")
    return known


def _gencode(archs: Sequence[str], known: Sequence[int]) -> list[str]:
    """nvcc's flags for architectures; for a GPU newer than nvcc, PTX that the driver compiles for it."""
    flags = []
    for arch in archs:
        base = arch.removesuffix("+PTX")
        number = int(base.rstrip("af"))
        if number not in known:
            older = [k for k in known if k < number]
            if not older:
                raise BuildError(f"nvcc compiles for GPUs from {_dotted(known[0])} on, this one is {_dotted(number)}")
            flags.append(f"-gencode=arch=compute_{older[-1]},code=compute_{older[-1]}")
            continue
        flags.append(f"-gencode=arch=compute_{base},code=sm_{base}")
        if base != arch:
            flags.append(f"-gencode=arch=compute_{base},code=compute_{base}")
    return list(dict.fromkeys(flags))


def _dotted(arch: int) -> str:
    return f"{arch // 10}.{arch % 10}"


def _runs_on(built: Sequence[str], present: Sequence[str]) -> bool:
    """Whether a library for the architectures `built` has code for every GPU that is present."""

    def serves(arch: str, gpu: int) -> bool:
        base = arch.removesuffix("+PTX")
        if base[-1] in "af":
            return int(base[:-1]) == gpu
        same_generation = int(base) // 10 == gpu // 10
        return int(base) <= gpu and (same_generation or base != arch)

    return all(any(serves(arch, int(gpu)) for arch in built) for gpu in present)


# ---- Building -------------------------------------------------------------------------------------------------------


def build(name: Name, target: Path, scratch: Path, archs: Sequence[str] = ()) -> None:
    """Builds a library in the folder `scratch`, and moves it to `target` once it is whole.

    Args:
        archs: the GPU architectures, for "cuda".

    Raises:
        BuildError: it failed; where a compiler ran, what it said is in scratch/build.log.
    """
    tools = _tools(name)
    library, csrc = LIBRARIES[name], _sources()
    torch_root = Path(torch.__file__).resolve().parent
    includes = [f"-I{csrc / 'include'}", f"-I{csrc}", "-isystem", str(torch_root / "include")]
    libraries = [f"-L{torch_root / 'lib'}"]
    if tools.nvcc is None:
        compiler, generate = tools.cxx, []
    else:
        # As the host compiler nvcc takes a path, but no words before it.
        host = [f"-ccbin={tools.cxx[0]}"] if len(tools.cxx) == 1 else []
        compiler = [tools.nvcc, *host]
        if any(Path(tools.nvcc).is_relative_to(folder) for folder in _pypi_cuda()):
            # It knows its own folder only, and the headers may lie in another.
            includes += [f"-I{folder / 'include'}" for folder in _pypi_cuda()]
            libraries += [f"-L{folder / 'lib'}" for folder in _pypi_cuda()]
        generate = _gencode(archs, _known_archs(tools.nvcc))

    lines = ["rule run", "  command = $line", "  description = $out"]

    def add(output: str, inputs: Sequence[str], command: Sequence[str]) -> None:
        escaped = [re.sub(r"([$: ])", r"$\1", path) for path in inputs]
        lines.extend([f"build {output}: run {' '.join(escaped)}", f"  line = {shlex.join(command).replace('$', '$$')}"])

    units = _translation_units(name)
    objects = [f"{n}-{source.stem}.o" for n, (source, _) in enumerate(units)]  # in the order in which they are linked
    compiled = zip(objects, units, strict=True)
    for made, (source, flags) in sorted(compiled, key=lambda one: one[1][0].name not in _LONGEST):
        add(made, [str(source)], [*compiler, *flags, *generate, *includes, "-c", str(source), "-o", made])
    link = [*compiler, "-shared", *objects, "-o", target.name, *libraries, *library.link_flags]
    add(target.name, objects, link)

    log = scratch / "build.log"
    (scratch / "build.ninja").write_text("\n".join([*lines, f"default {target.name}", ""]))
    jobs = os.environ.get("MAX_JOBS", "")
    with log.open("wb") as output:
        done = subprocess.run(
            [tools.ninja, *(["-j", jobs] if jobs.isdecimal() else [])],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},  # _first_error reads English
        )
    if done.returncode != 0:
        raise BuildError(_first_error(log))
    target.parent.mkdir(parents=True, exist_ok=True)
    (scratch / target.name).replace(target)


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _is_whole(path: Path) -> bool:
    """Whether a cached library is what was built: a truncated one would kill the process that loads it (SIGBUS)."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _digest_file(path).read_text()
    except OSError:
        return False


def _first_error(log: Path) -> str:
    """The line of a compiler's output that says what is wrong."""
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    is_error = re.compile(
        r"(^|[\s:])(fatal )?error( #?\w+)?\s*:|fatal\s*:|undefined reference|cannot find|Undefined symbols"
    )
    line = next((line for line in said if is_error.search(line)), said[-1] if said else "ninja failed")[:400]
    if re.search(r"(nv/\w+|cuda_\w+\.h|crt/\w+\.h)\b.*No such file", line):
        line += f" (this nvcc lacks its headers: {_install_nvcc()})"
    return line


# ---- Where a built library lies -------------------------------------------------------------------------------------


def ahead_file(name: Name, archs: Sequence[str] = ()) -> str:
    """The file name of a library built ahead. It says all that decides whether the library may be used."""
    words = [f"fusedmix_{name}", platform.machine()]
    if name == "cuda":
        words += [f"cu{_cuda_major()}", ".".join(archs)]
    return "-".join([*words, _hash(name)]) + ".so"


def _cuda_major() -> str:
    return (torch.version.cuda or "").partition(".")[0]


def _ahead(name: Name, check_gpus: bool) -> Path | None:
    """The library built ahead, if it is of these very sources and (where checked) for the GPUs that are present."""
    folder = _PACKAGE / "_native"
    if not folder.is_dir():
        return None
    for path in sorted(folder.glob(ahead_file(name, ["*"]))):
        if name == "cpp" or not check_gpus or _runs_on(path.name.split("-")[3].split("."), _present_archs()):
            return _as_installed(path)
    return None


def _as_installed(path: Path) -> Path:
    """A library that was built ahead, if it has the size that pip wrote down; where pip did not, as it is.

    Raises:
        BuildError: it has not.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("fusedmix") or ():
            same = file.name == path.name and Path(str(file.locate())).resolve() == path.resolve()
            if same and file.size not in (None, path.stat().st_size):
                raise BuildError(
                    f"{path} is damaged: it has not the {file.size} bytes that were installed: install again"
                )
    return path


def _cache_root() -> Path:
    asked = os.environ.get("FUSEDMIX_CACHE_DIR")
    try:
        return Path(asked or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fusedmix")).expanduser().absolute()
    except RuntimeError as error:
        raise BuildError(f"there is no cache folder ({error}): set FUSEDMIX_CACHE_DIR") from error


def _cached(name: Name) -> tuple[Path, list[str]]:
    """Where the cache has, or will have, the library, and the GPU architectures it is for.

    Its folder's name carries all that a library depends on, but not the compiler: what is cached must load without one.
    """
    from fusedmix.version import __version__

    words = [name, __version__, f"torch{torch.__version__}"]
    archs: list[str] = []
    if name == "cuda":
        archs = _asked_archs() or _present_archs()
        words += [f"cuda{torch.version.cuda}", "sm" + ".".join(archs)]
    words.append(platform.machine())
    # A home folder may be shared by machines whose C libraries are of unlike age.
    with contextlib.suppress(AttributeError, ValueError, OSError):
        words.append((os.confstr("CS_GNU_LIBC_VERSION") or "").replace(" ", ""))
    return _cache_root() / "-".join([*filter(None, words), _hash(name)]) / f"fusedmix_{name}.so", archs


def _no_cache(error: OSError) -> BuildError:
    reason = error.strerror or str(error)
    return BuildError(f"the cache folder {_cache_root()} cannot be written ({reason}): set FUSEDMIX_CACHE_DIR")


def _check_buildable(name: Name) -> None:
    """Raises BuildError if a library cannot be built at first use, as far as can be told without trying."""
    if not platform_builds():
        raise BuildError("the native libraries are built on Linux and macOS only: under Windows, use WSL")
    _translation_units(name)
    if os.environ.get("FUSEDMIX_JIT", "").lower() in ("0", "false", "no", "off"):
        raise JitForbiddenError(
            f"FUSEDMIX_JIT={os.environ['FUSEDMIX_JIT']} forbids building it, and it is neither built ahead nor cached"
        )
    _tools(name)
    folder = _cache_root()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise _no_cache(OSError(errno.ENOTDIR, f"{folder} is not a folder"))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _no_cache(OSError(errno.EACCES, os.strerror(errno.EACCES)))


def platform_builds() -> bool:
    return sys.platform in ("linux", "darwin")


@contextlib.contextmanager
def _locked(path: Path, waiting: str) -> Iterator[None]:
    """Holds the lock of a file; after a second of waiting for it, says so.

    The lock is the kernel's and dies with its process, however that dies. Not flock, which lives on in a child that
    was forked meanwhile; not filelock, which where a file system has no locks makes do with one that outlives a kill.
    """
    import fcntl  # not on Windows

    with path.open("w") as file:
        patience = time.monotonic() + 1
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                if time.monotonic() < patience:
                    time.sleep(0.05)
                    continue
                _say(waiting)
                fcntl.lockf(file, fcntl.LOCK_EX)
            break
        yield  # closing the file frees the lock


def _say(line: str) -> None:
    print(f"fusedmix: {line}", file=sys.stderr, flush=True)


def _build_into_cache(name: Name, target: Path, archs: Sequence[str]) -> None:
    """Builds the library that belongs at `target`, unless another process does so meanwhile."""
    _check_buildable(name)
    folder, root = target.parent, target.parent.parent
    failed = root / f"{folder.name}.failed.log"
    arrived = time.time()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{folder.name}.lock", f"waiting for another process that builds the {name} backend"):
            if _is_whole(target):
                return
            if failed.exists() and failed.stat().st_mtime > arrived:  # it would fail here as well
                raise BuildError(f"{_first_error(failed)} (all of it: {failed})")
            for left in root.glob(f"{folder.name}.building-*"):  # by processes that were killed
                shutil.rmtree(left, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.building-", dir=root))
            try:
                _say(f"building the {name} backend at first use, about {LIBRARIES[name].takes}, into {folder}")
                started = time.monotonic()
                built = scratch / "built" / target.name
                build(name, built, scratch, archs)
                folder.mkdir(exist_ok=True)
                # The library last: where a process is killed in between, it is not whole.
                digest = scratch / "digest"
                digest.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
                digest.replace(_digest_file(target))
                built.replace(target)
                failed.unlink(missing_ok=True)  # of an earlier try
                _say(f"built the {name} backend in {time.monotonic() - started:.0f} s")
            except BuildError as error:
                log = scratch / "build.log"
                if not log.exists():
                    raise
                log.replace(failed).touch()
                raise BuildError(f"{error} (all of it: {failed})") from None
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise _no_cache(error) from error


# ---- What the rest of the package calls ------------------------------------------------------------------------------

_mutex = threading.Lock()
_loaded: dict[Name, Path] = {}
_failed: dict[Name, BuildError] = {}


def why_not(name: Name) -> str | None:
    """Why a library cannot be used here, in one line, or None. Builds and loads nothing."""
    if name in _loaded:
        return None
    if name in _failed:
        return str(_failed[name])
    try:
        if _ahead(name, check_gpus=False):
            return None
        # Before the cache is looked into: to know its folder, CUDA must be started in this process.
        _check_buildable(name)
    except BuildError as error:
        with contextlib.suppress(BuildError):
            if _is_whole(_cached(name)[0]):
                return None
        return str(error)
    return None


def load(name: Name) -> None:
    """Loads a library into torch, which registers its operators: one built ahead, else one cached, else builds it.

    Raises:
        BuildError: it cannot be had; the message says why in one line. The same again at every later call, without a
            second try.
    """
    with _mutex:
        if name in _loaded:
            return
        if name in _failed:
            raise type(_failed[name])(str(_failed[name]))
        try:
            path = _ahead(name, check_gpus=True)
            if path is None:
                path, archs = _cached(name)
                if not _is_whole(path):
                    if path.exists():
                        _say(f"{path} is damaged: it is built anew")
                    _build_into_cache(name, path, archs)
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                reason = str(error.__cause__ or error).partition("\n")[0]
                raise BuildError(f"{path} cannot be loaded ({reason}): delete it to have it built anew") from error
        except BuildError as error:
            _failed[name] = error
            raise
        _loaded[name] = path


def tools() -> list[tuple[str, str]]:
    """What a build here would use, or why there is none, for `fusedmix info`."""

    def found(look: Callable[[], str]) -> str:
        try:
            return look()
        except BuildError as error:
            return str(error)

    return [("c++", found(lambda: shlex.join(_cxx()))), ("nvcc", found(_nvcc)), ("ninja", found(_ninja))]


def status(name: Name) -> str:
    """Where a library comes from, in one line, for `fusedmix info`."""
    reason = why_not(name)
    if reason is not None:
        return reason
    try:
        ahead = _ahead(name, check_gpus=True)
        if ahead is not None:
            return f"built ahead: {ahead}"
        cached, _ = _cached(name)
    except BuildError as error:
        return str(error)
    return f"cached: {cached}" if _is_whole(cached) else f"will be built at first use (about {LIBRARIES[name].takes})"
