"""Which backend is chosen: by the argument, else by the environment; and what is said where one cannot run."""

from __future__ import annotations

import os

import pytest
import torch

import fusedmix as fm
from wrong_calls import PLAN, X, Y, check


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    with pytest.raises(fm.BackendError, match=r"'cuda' cannot run on 'cpu' tensors: .+"):
        fm.mix(X, PLAN, backend="cuda")
    with monkeypatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setattr(fm.backends, "_chosen", {})
        with pytest.raises(fm.BackendError, match=r"'triton' cannot run on 'cpu' tensors: .+TRITON_INTERPRET=1"):
            fm.MixUp(num_classes=4, backend="triton")(X, Y)
    check(lambda: fm.backends.choose("cuda", "cpp"), fm.BackendError, ("'cpp'", "'cuda'"))


def test_the_environment_chooses_a_backend(monkeypatch):
    monkeypatch.setitem(os.environ, "FUSEDMIX_BACKEND", "reference")
    assert torch.equal(fm.mix(X, PLAN), fm.mix(X, PLAN, backend="reference"))
    monkeypatch.setitem(os.environ, "FUSEDMIX_BACKEND", "cuda")
    with pytest.raises(fm.BackendError, match="FUSEDMIX_BACKEND=cuda"):
        fm.mix(X, PLAN)
    fm.mix(X, PLAN, backend="reference")  # An argument beats the environment.
    monkeypatch.setitem(os.environ, "FUSEDMIX_BACKEND", "fast")
    with pytest.raises(fm.BackendError, match=r"FUSEDMIX_BACKEND.*reference.*'fast'"):
        fm.mix(X, PLAN)


def test_the_report_of_backends_never_raises(monkeypatch):
    for named in ("", "reference", "cuda", "fast"):
        monkeypatch.setitem(os.environ, "FUSEDMIX_BACKEND", named)
        lines = {(line.name, line.device): line for line in fm.backends.report()}
        assert {name for name, _ in lines} == set(fm.backends.NAMES)
        assert all(line.reason for line in lines.values())
        assert lines["reference", "cpu"].works
        assert lines["reference", "cpu"].chosen == (
            named == "reference" or (named == "" and not lines["cpp", "cpu"].works)
        )
        assert lines["cpp", "cpu"].chosen == (named == "" and lines["cpp", "cpu"].works)
