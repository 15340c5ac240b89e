"""A mask family has a file in each language and in the tests, which are found; nothing else says which families there
are but the enums and the list of masks.h."""

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
    text = (HEADERS / "masks" / f"{name}.h").read_text()
    (struct,) = re.findall(r"^struct (\w+) : Family \{$", text, re.MULTILINE)
    (listed,) = re.findall(r"^using All = List<(.*)>;$", (HEADERS / "masks.h").read_text(), re.MULTILINE)
    assert listed.split(", ").count(struct) == 1
    for of, expected in (("Kinds", masks.BY_NAME[name].kinds), ("Methods", masks.BY_NAME[name].methods)):
        (numbers,) = re.findall(rf"^  using {of} = Numbers<(.*)>;$", text, re.MULTILINE)
        assert {folded(number.removeprefix("k")) for number in numbers.split(", ")} == {
            folded(x.name) for x in expected
        }


@pytest.mark.parametrize("name", masks.BY_NAME)
def test_every_method_is_tested(name):
    record = RECORDS[name]
    modules = [record.module(2), *(make() for make in record.methods.values())]
    assert {int(module._spec[0, Column.METHOD]) for module in modules} == masks.BY_NAME[name].methods
    assert record.stored or record.words.keys() == {part for part in Families if part in masks.BY_NAME[name].parts}
