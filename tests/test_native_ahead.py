"""Native libraries that are built ahead, by pip or setup.py; and what wheel, sdist and editable installation hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools

from native_box import NEEDED, REPO, Box, answer, new_box, write

old = int(setuptools.__version__.partition(".")[0]) < 77
pytestmark = [*NEEDED, pytest.mark.skipif(old, reason="pyproject.toml asks for setuptools>=77")]
box = pytest.fixture(new_box)


def copy_project(project: Path, csrc: Path) -> None:
    skip = shutil.ignore_patterns("__pycache__", "_native")
    shutil.copytree(REPO / "fusedmix", project / "fusedmix", ignore=skip)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPO / name, project)
    (project / "csrc").symlink_to(csrc)


def setup_py(box: Box, *arguments: str, torch_importable: bool = True) -> subprocess.CompletedProcess[str]:
    """`python setup.py ...` in a copy of the project with the stub's sources."""
    project = box.root / "project"
    if not project.exists():
        copy_project(project, box.csrc)
    hide = "" if torch_importable else "sys.modules['torch'] = None;"
    code = f"import runpy, sys; {hide} sys.argv[0] = 'setup.py'; runpy.run_path('setup.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=project, capture_output=True, text=True, timeout=100
    )


def test_ahead(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    done = setup_py(box, "build_ext", "--inplace")
    assert done.returncode == 0, done.stderr
    assert "NOT built ahead: the cuda library: this torch was built without CUDA" in done.stdout
    ahead = {line for line in box.calls() if "-shared" not in line}

    project = box.root / "project"
    [built] = project.glob("fusedmix/_native/*")
    monkeypatch.setenv("FUSEDMIX_JIT", "0")
    native = box.native(project / "fusedmix")
    assert native.status("cpp") == f"built ahead: {built}"
    assert answer(native) == 42
    assert not box.cache.exists()

    write(box.csrc, {"include/fusedmix/answer.h": "#define ANSWER 7\n"})
    stale = box.native(project / "fusedmix")
    assert "neither built ahead nor cached" in stale.why_not("cpp")
    monkeypatch.delenv("FUSEDMIX_JIT")
    box.log.unlink()
    assert answer(stale) == 7
    assert {line for line in box.calls() if "-shared" not in line} == ahead  # Both have one list of sources and flags.


def test_ahead_with_cuda(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.setenv(FUSEDMIX_BUILD="cuda", STUB_CUDA="13.2", CUDACXX=box.nvcc("toolkit", "13.2"))
    done = setup_py(box, "build_ext", "--inplace")
    assert done.returncode == 0, done.stderr
    package = box.root / "project" / "fusedmix"
    [built] = package.glob("_native/*")
    assert built.name.startswith(f"fusedmix_cuda-{os.uname().machine}-cu13-80.90.100.120+PTX-")
    monkeypatch.delenv("CUDACXX")
    for gpu, ahead in (("(9, 0)", True), ("(8, 6)", True), ("(7, 5)", False)):
        monkeypatch.setenv("STUB_GPU", gpu)
        native = box.native(package)
        assert (native._ahead("cuda", check_gpus=True) == built) is ahead
        assert native.why_not("cuda") is None
        if ahead:
            assert answer(native, "cuda") == 43
    monkeypatch.setenv("STUB_CUDA", "12.8")
    assert box.native(package)._ahead("cuda", check_gpus=False) is None


@pytest.mark.parametrize(
    ("asked", "torch_importable", "words"),
    [
        ("cpp,cuda", True, "The cuda library of fusedmix cannot be built: this torch was built without CUDA."),
        ("cpp", False, "pip install --no-build-isolation ."),
        ("all", True, "FUSEDMIX_BUILD must be none, cpp, cuda or cpp,cuda, but is 'all'."),
    ],
)
def test_ahead_refused(
    box: Box, monkeypatch: pytest.MonkeyPatch, asked: str, torch_importable: bool, words: str
) -> None:
    monkeypatch.setenv("FUSEDMIX_BUILD", asked)
    done = setup_py(box, "build_ext", torch_importable=torch_importable)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].endswith(words)
    assert not box.calls()


def test_ahead_fails_with_the_compilers_message(box: Box) -> None:
    write(box.csrc, {"binding/cpu.cpp": "int x = ;\n"})
    done = setup_py(box, "build_ext")
    assert done.returncode != 0
    assert "binding/cpu.cpp:1:9: error: expected primary-expression" in done.stdout
    assert "The cpp library of fusedmix cannot be built: " in done.stderr


def test_what_wheel_and_sdist_hold(box: Box) -> None:
    csrc = {f"csrc/{path.relative_to(REPO / 'csrc').as_posix()}" for path in REPO.glob("csrc/**/*") if path.is_file()}
    project = box.root / "project"
    copy_project(project, REPO / "csrc")
    stale = project / "build" / "lib" / "fusedmix" / "csrc" / "cuda" / "gone.cu"  # An earlier build has left it.
    write(stale.parent, {stale.name: ""})
    done = setup_py(box, "-q", "bdist_wheel", "sdist", torch_importable=False)
    assert done.returncode == 0, done.stderr
    assert not box.calls()
    [wheel] = (project / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    python = {path.relative_to(REPO).as_posix() for path in REPO.glob("fusedmix/**/*.py")}
    built_from = {f"fusedmix/{name}" for name in csrc if name.split("/")[1] not in ("tests", "shim", "benchmarks")}
    assert {name for name in inside if ".dist-info/" not in name} == python | built_from | {"fusedmix/py.typed"}

    [sdist] = (project / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert csrc <= inside
    assert {"setup.py", "pyproject.toml", "fusedmix/py.typed", *python} <= inside


def test_an_editable_installation_is_a_line_in_a_pth_file(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which type checkers read, and which serves beside a clone whose folder has the package's name."""
    clone, installed = box.root / "clones" / "fusedmix", box.root / "site"
    copy_project(clone, box.csrc)
    monkeypatch.setenv("FUSEDMIX_BUILD", "none")
    code = f"from setuptools import build_meta; build_meta.build_editable({str(box.root)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = box.root.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert archive.read(name).decode().splitlines() == [str(clone)]
        archive.extractall(installed)
    monkeypatch.delenv("PYTHONPATH")
    code = (
        f"import site; site.addsitedir({str(installed)!r}); import importlib.util as u; print(u.find_spec('fusedmix'))"
    )
    for folder in (clone.parent, clone, box.root / "torch"):
        # -S: without the site-packages of this Python, where another fusedmix may be.
        found = subprocess.run([sys.executable, "-S", "-c", code], cwd=folder, capture_output=True, text=True)
        assert str(clone / "fusedmix" / "__init__.py") in found.stdout, found.stdout + found.stderr
