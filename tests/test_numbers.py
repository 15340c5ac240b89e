"""The numbers that C++ shares with Python: enums, rows of a spec, the width of what was drawn, the words of a record.
What the operators make of them is test_agreement's."""

from __future__ import annotations

import re
from enum import EnumMeta
from itertools import count
from pathlib import Path

import pytest

from fusedmix import methods, philox
from fusedmix.masks.family import WORDS
from fusedmix.methods import WIDTH, Column

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {path: path.read_text() for path in (ROOT / "csrc").rglob("*.*") if path.suffix in (".h", ".cpp", ".cu")}
# Of Column the mirror is a struct: test_a_row_of_a_spec.
SHARED = [
    found
    for module in (methods, philox)
    for found in vars(module).values()
    if isinstance(found, EnumMeta) and found.__module__ == module.__name__ and found is not Column
]
# What stands before a name in C++, where an enum has no scope of its own.
PREFIX = {"Per": "Per", "Stream": "Stream", "Drawn": "Draws", "Number": "Number"}
ENUM = re.compile(r"^enum (?:class )?(\w+)(?: : \w+)? \{(.*?)\};", re.MULTILINE | re.DOTALL)


def members(text):
    """Names and values of the body of an enum; one that is not given is one more than that before it."""
    found, following = {}, count()
    for member in filter(None, re.split(r"\s*,\s*", re.sub(r"//.*", "", text).strip())):
        name, _, given = member.partition(" = ")
        if given:
            following = count(int(given))
        found[name] = next(following)
    return found


ENUMS = {name: members(text) for source in SOURCES.values() for name, text in ENUM.findall(source)}


def folded(name):
    """The same of HMIX_RELEASED and of kHMixReleased without its k."""
    return name.replace("_", "").lower()


@pytest.mark.parametrize("theirs", SHARED, ids=lambda enum: enum.__name__)
def test_an_enum_is_pythons(theirs):
    name = theirs.__name__
    ours = {folded(member.removeprefix("k" + PREFIX.get(name, ""))): value for member, value in ENUMS[name].items()}
    assert ours == {folded(member.name): member.value for member in theirs}


def only(pattern):
    """The one place where all of csrc says something."""
    (found,) = [match for source in SOURCES.values() for match in re.findall(pattern, source, re.DOTALL)]
    return found


def test_a_row_of_a_spec():
    fields = only(r"struct MethodRow \{\s*double ([\w, \n]+);\s*\};")
    assert re.split(r",\s*", fields) == [column.name.lower() for column in Column]


def test_sizes():
    assert int(only(r"constexpr int kDrawnWidth = (\d+);")) == WIDTH
    assert int(only(r"static_assert\(sizeof\(Record\) == (\d+)\);")) == 4 * WORDS


@pytest.mark.parametrize("folder", ["csrc", "fusedmix"])
def test_kinds_and_methods_have_no_order(folder):
    """A new one has the largest number, whatever it is."""
    ordered = re.compile(r"\b(?:kind|method)\b[\])]*\s*[<>]=?\s")
    paths = [path for path in (ROOT / folder).rglob("*.*") if path.suffix in (".h", ".cpp", ".cu", ".py")]
    lines = [f"{path.name}: {line.strip()}" for path in paths for line in path.read_text().splitlines()]
    assert [line for line in lines if ordered.search(line)] == []
