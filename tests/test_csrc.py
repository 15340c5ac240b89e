"""csrc builds without torch or Python, by CMake, and passes its own tests (csrc/tests)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fusedmix.backends import native

ROOT = Path(__file__).resolve().parents[1]
CMAKE = shutil.which("cmake")


def test_the_flags_are_those_of_the_package():
    listed = {
        match[1]: match[2].replace(",", " ").split()
        for match in re.finditer(r"set\((HOST|NVCC)_FLAGS ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    }
    said_otherwise = {"-std=c++17", "-fPIC", "-fvisibility=hidden"}  # by properties of CMake
    assert set(listed["HOST"]) == set(native._HOST_FLAGS) - said_otherwise
    nvcc = {word for flag in native._NVCC_FLAGS for word in flag.replace("=-", " -").replace(",", " ").split()}
    ours = {word for flag in listed["NVCC"] for word in flag.replace("=-", " -").split()}
    assert ours == nvcc - said_otherwise


@pytest.mark.thorough
@pytest.mark.skipif(CMAKE is None and not os.environ.get("CI"), reason="cmake is not installed")
@pytest.mark.skipif(native.why_not("cpp") is not None, reason=str(native.why_not("cpp")))
def test_csrc_passes_its_own_tests():
    assert CMAKE is not None, "CI must build csrc: cmake is not installed"
    shim_build = pytest.importorskip("shim_build")  # fcntl: not on Windows
    import fcntl

    # CMake ties a build to its sources' folder: one for each checkout.
    folder = shim_build.cache() / f"cmake-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
    with (shim_build.cache() / "cmake.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers build there too
        ninja = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={native._ninja()}"]
        # Without CUDA: for these kernels there is test_native_build, and the GPU suite.
        configure = [CMAKE, "-S", ROOT, "-B", folder, *ninja, "-DFUSEDMIX_CUDA=OFF"]
        jobs = os.environ.get("MAX_JOBS", "2")
        for command in (configure, [CMAKE, "--build", folder, "-j", jobs], ["ctest", "--output-on-failure", "-j2"]):
            done = subprocess.run(command, cwd=folder.parent if command is configure else folder, capture_output=True)
            assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
