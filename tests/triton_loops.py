"""How many values the loops of compiled kernels carry, and how many the line of each loop says that it carries.

A value that Triton leaves out of a loop is wrong on a GPU alone (fusedmix/backends/triton/numbers.py has the rule that
keeps it from doing so): the interpreter knows nothing of what is compiled. So values are counted in Triton's own code,
which says of every operation from which line it comes.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path


def carried(ttir):
    """[file, line, how many values it carries] of every loop in the code of a kernel."""
    places = dict(re.findall(r"^(#loc\d*) = (loc\(.*\))$", ttir, re.MULTILINE))

    def place(said):
        """Where an operation is: a function that is inlined says first where it is itself, then where it is called."""
        while not (found := re.search(r'"([^"]+\.py)":(\d+):', said)):
            said = places[re.search(r"#loc\d*", said)[0]]
        return [found[1], int(found[2])]

    loops, opened = [], []
    for line in map(str.strip, ttir.splitlines()):
        operation = line
        if line.startswith("}"):  # of an operation with two regions (`} else {`) the first line is what counts
            operation = opened.pop()
            if not line.endswith("{") and re.search(r"\bscf\.(for|while)\b", operation):
                values = re.search(r"(?:iter_args|while )\(([^)]*)\)", operation)
                loops.append([*place(line), values[1].count(" = ") if values else 0])
        if line.endswith("{"):
            opened.append(operation)
    return loops


def written(source):
    """{line: the formula beside it, or None} of every loop in Triton's functions that is compiled as a loop."""
    lines, found = source.splitlines(), {}
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef) and any("jit" in ast.unparse(of) for of in function.decorator_list):
            for loop in ast.walk(function):
                unrolled = isinstance(loop, ast.For) and "static_range" in ast.unparse(loop.iter)
                if isinstance(loop, (ast.For, ast.While)) and not unrolled:
                    said = re.search(r"# carries ([^:]+): ", lines[loop.lineno - 1])
                    found[loop.lineno] = said and said[1]
    return found


def complaints(folder, compiled):
    """What is wrong with the loops of the kernels in a folder, of which `compiled` has the constants and `carried`: one
    without a number, or that carries another one, or that no kernel has; and a number that depends on a constant which
    was the same in all of them."""
    wrong, seen = set(), {}
    formulas = {
        (str(path), line): of for path in folder.rglob("*.py") for line, of in written(path.read_text()).items()
    }
    for constants, loops in compiled:
        for file, line, carries in loops:
            if folder not in Path(file).parents:  # Triton's own
                continue
            formula = formulas.get((file, line))
            if formula is not None:
                number = eval(formula, {"int": int}, constants)
                seen.setdefault((file, line), []).append(constants)
                if carries != number:
                    wrong.add(f"{file}:{line} carries {carries} instead of {formula} = {number}")
            elif (file, line) not in formulas:
                wrong.add(f"{file}:{line} is compiled as a loop and was not found in the source")
    for (file, line), formula in formulas.items():
        if formula is None:
            wrong.add(f"{file}:{line} does not say how many values it carries")
        elif (file, line) not in seen:
            wrong.add(f"{file}:{line} is in no kernel that was compiled")
        else:
            for name in re.findall(r"\b[A-Z]\w*", formula):
                if len({constants[name] for constants in seen[file, line]}) == 1:
                    wrong.add(f"{file}:{line} was compiled for one value of {name} alone")
    return sorted(wrong)
