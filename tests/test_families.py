"""A mask family has a file in each language and in the tests, which are found; nothing else says which families there
are but the enums and the switches of masks.h."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from families import RECORDS
from fusedmix import masks
from fusedmix.methods import Column, Families, Kind, Method
from test_numbers import folded

ROOT = Path(__file__).resolve().parents[1]
HEADERS = ROOT / "csrc" / "include" / "fusedmix"


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [
        ("fusedmix/masks", "py"),
        ("csrc/include/fusedmix/masks", "h"),
        ("fusedmix/backends/triton/masks", "py"),
        ("tests/families", "py"),
    ],
    ids=["Python", "C++", "Triton", "tests"],
)
def test_every_family_has_a_file(folder, suffix):
    found = {path.stem for path in (ROOT / folder).glob(f"*.{suffix}")} - {"__init__", "family", "record"}
    assert found == set(masks.BY_NAME)


def test_families_share_nothing():
    assert sorted(method for family in masks.FAMILIES for method in family.methods) == sorted(Method)
    assert sorted(kind for family in masks.FAMILIES for kind in family.kinds) == sorted(Kind)
    assert sorted(part for family in masks.FAMILIES for part in Families if part in family.parts) == sorted(Families)


@pytest.mark.parametrize("name", masks.BY_NAME)
def test_cpp_has_the_kinds_and_the_methods(name):
    """In the two switches of masks.h."""
    (struct,) = re.findall(r"^struct (\w+) : Family \{$", (HEADERS / "masks" / f"{name}.h").read_text(), re.MULTILINE)
    text, family = (HEADERS / "masks.h").read_text(), masks.BY_NAME[name]
    for made, expected in ((f"bit_cast<{struct}>(record)", family.kinds), (f"{struct}{{}}", family.methods)):
        (cases,) = re.findall(rf"^    (case .*:) return f\({re.escape(made)}\);$", text, re.MULTILINE)
        assert {folded(case) for case in re.findall(r"case k(\w+):", cases)} == {folded(x.name) for x in expected}


@pytest.mark.parametrize("name", masks.BY_NAME)
def test_every_method_is_tested(name):
    record = RECORDS[name]
    modules = [record.module(2), *(make() for make in record.methods.values())]
    assert {int(module._spec[0, Column.METHOD]) for module in modules} == masks.BY_NAME[name].methods
    assert record.stored or record.words.keys() == {part for part in Families if part in masks.BY_NAME[name].parts}
