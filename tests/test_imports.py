"""The imports of the package have one direction: no module needs itself, whoever is asked on the way.

Imports inside functions and those for types alone count as well: they are arrows of the same picture.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import fusedmix
from callers import python

PACKAGE = Path(fusedmix.__file__).parent


def modules():
    """The files of the package by the names of their modules."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path, among):
    """Which modules among those a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in among else node.module for name in names}
    return found & among


def circle(graph):
    """Modules that need each other, the first one once more at the end; None if there are none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_a_circle_is_found(tmp_path):
    for name, text in {
        "a": "from p import b",
        "b": "def late():\n    import p.c",
        "c": "if TYPE_CHECKING:\n    from p.a import A",
        "d": "import p.a\nfrom p import b, name",
    }.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    names = {f"p.{name}" for name in "abcd"}
    graph = {name: imported(tmp_path / f"{name[2:]}.py", names | {"p"}) for name in names}
    assert graph == {"p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a"}, "p.d": {"p", "p.a", "p.b"}}
    assert set(circle(graph)) == {"p.a", "p.b", "p.c"}
    assert circle({**graph, "p.c": set()}) is None


def test_there_is_no_circle():
    found = modules()
    graph = {name: imported(path, set(found)) - {name} for name, path in found.items()}
    assert len(graph) > 60
    assert sum(map(len, graph.values())) > 200
    assert circle(graph) is None


def test_what_is_not_imported():
    """Dynamo and Triton take seconds; and Triton must not be there before a program says that it is to interpret."""
    code = "import json, sys, fusedmix.api; print(json.dumps(sorted({'triton', 'torch._dynamo'} & set(sys.modules))))"
    assert python(code) == []
