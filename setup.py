"""Builds the native libraries ahead, where torch can be imported. Everything that needs no code is in pyproject.toml.

`pip install .` builds nothing: the libraries are built at first use. `pip install --no-build-isolation .` builds cpp,
and cuda where there is an nvcc for this environment's torch. FUSEDMIX_BUILD=none, =cpp, =cuda or =cpp,cuda says which
to build; it is an error then if one cannot be. (-v makes pip show what is printed here.)
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import setuptools
from setuptools import Extension, setup

if int(setuptools.__version__.partition(".")[0]) < 77:  # which pip does not look at without build isolation
    sys.exit(f"fusedmix is built by setuptools>=77, but this is {setuptools.__version__}: pip install -U setuptools")

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# The folders of csrc that the libraries are built from. The others are for tests.
SOURCES = ("include", "binding", "host", "cpu", "cuda")


def load_native() -> ModuleType:
    """fusedmix/backends/native.py, without the package around it."""
    name = "fusedmix_native"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "fusedmix" / "backends" / "native.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def choose() -> tuple[dict[str, str], str]:
    """The libraries to build, with their files' names, and what to say of one left out."""
    asked = os.environ.get("FUSEDMIX_BUILD")
    names = ["cpp", "cuda"] if asked is None else [w for w in asked.replace(",", " ").split() if w != "none"]
    if not set(names) <= {"cpp", "cuda"}:
        sys.exit(f"FUSEDMIX_BUILD must be none, cpp, cuda or cpp,cuda, but is {asked!r}.")
    if native is None:
        if asked is not None and names:
            sys.exit(f"FUSEDMIX_BUILD={asked} builds for this environment's torch: pip install --no-build-isolation .")
        return {}, ""
    if asked is None and not native.platform_builds():
        return {}, ""
    files, left_out = {}, ""
    for name in names:
        try:
            files[name] = native.ahead_file(name, native.ahead_archs() if name == "cuda" else [])
        except native.BuildError as error:
            if asked is not None or name == "cpp":
                sys.exit(f"The {name} library of fusedmix cannot be built: {error}.")
            left_out = f"NOT built ahead: the cuda library: {error}. (FUSEDMIX_BUILD=cpp,cuda makes that an error.)"
    return files, left_out


# What pip asks for before it builds does not depend on the libraries; to import torch takes seconds.
ONLY_METADATA = not {"dist_info", "egg_info"}.isdisjoint(sys.argv)
native = load_native() if not ONLY_METADATA and importlib.util.find_spec("torch") else None
FILES, LEFT_OUT = ({}, "") if ONLY_METADATA else choose()


class BuildLibraries(build_ext):
    """Each extension is a library of native.LIBRARIES."""

    def run(self) -> None:
        # Of an earlier build: everything in the build folder goes into the wheel.
        shutil.rmtree(Path(self.build_lib, "fusedmix", "_native"), ignore_errors=True)
        super().run()
        if LEFT_OUT:
            print("", "*" * 100, LEFT_OUT, "*" * 100, "", sep="\n", flush=True)

    def copy_extensions_to_source(self) -> None:  # of an editable installation
        folder = Path(__file__).parent / "fusedmix" / "_native"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        super().copy_extensions_to_source()

    def get_ext_filename(self, fullname: str) -> str:
        *folders, name = fullname.split(".")
        return str(Path(*folders, FILES[name]))

    def build_extension(self, ext: Extension) -> None:
        name = ext.name.rpartition(".")[2]
        target = Path(self.get_ext_fullpath(ext.name)).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            log = Path(scratch, "build.log")
            try:
                native.build(name, target, Path(scratch), native.ahead_archs() if name == "cuda" else [])
            except native.BuildError as error:
                sys.exit(f"The {name} library of fusedmix cannot be built: {error}. (FUSEDMIX_BUILD=none builds none.)")
            finally:
                if log.exists():
                    print(log.read_text(errors="replace"), flush=True)


class BuildPython(build_py):
    """The package, and in it csrc, so that an installed one can build its libraries. A checkout has csrc beside it."""

    def csrc(self) -> dict[str, str]:
        """{where a file of csrc belongs: where it is}"""
        if self.editable_mode:
            return {}
        target = Path(self.build_lib, "fusedmix", "csrc")
        found = sorted(path for folder in SOURCES for path in Path("csrc", folder).rglob("*") if path.is_file())
        return {str(target / path.relative_to("csrc")): str(path) for path in found}

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib, "fusedmix", "csrc"), ignore_errors=True)  # of an earlier build
        super().run()
        for target, source in self.csrc().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target, preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self.csrc()]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self.csrc().values()]


class Wheel(bdist_wheel):
    """The libraries use the stable ABI of torch and none of Python: one wheel serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension(f"fusedmix._native.{name}", sources=[]) for name in FILES],
    cmdclass={"build_ext": BuildLibraries, "build_py": BuildPython, "bdist_wheel": Wheel},
)
