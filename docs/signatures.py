"""For the reference pages: the signatures of the mixing modules and of the functions of one call, as they are when the
package runs.

The pages are made from the sources, in which these have `**options: Unpack[Options]`. The decorators `spelled_out` and
`spelled_out_call` of `fusedmix.options` write the keywords out; here their result is taken over.
"""

from __future__ import annotations

import inspect
from typing import Any

import griffe

import fusedmix as fm
from fusedmix.options import DEFAULTS


class Signatures(griffe.Extension):
    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        ours = getattr(fm, cls.name, None)
        if cls.path == "fusedmix.options.Options":
            _add_defaults(cls)
        elif "__init__" in cls.members and isinstance(ours, type) and issubclass(ours, fm.MixTransform):
            _spell_out(cls.members["__init__"], ours)
            cls.docstring.value = inspect.getdoc(ours)

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        if func.parent.path == "fusedmix.functional" and not func.name.startswith("_"):
            ours = getattr(fm.functional, func.name)
            _spell_out(func, ours)
            func.docstring.value = inspect.getdoc(ours)


def _spell_out(function: griffe.Function, ours: Any) -> None:
    written = {parameter.name for parameter in function.parameters}
    if "options" not in written:
        return
    del function.parameters["options"]
    for name, parameter in inspect.signature(ours).parameters.items():
        if name not in written:
            kind, annotation = (
                griffe.ParameterKind.keyword_only,
                inspect.formatannotation(parameter.annotation),
            )
            function.parameters.add(
                griffe.Parameter(
                    name,
                    annotation=annotation,
                    kind=kind,
                    default=repr(parameter.default),
                )
            )


def _add_defaults(cls: griffe.Class) -> None:
    lines = []
    for line in cls.docstring.value.splitlines():
        name = line.strip().partition(":")[0]
        lines.append(line.replace(": ", f": (Default: `{DEFAULTS[name]!r}`.) ", 1) if name in DEFAULTS else line)
    cls.docstring.value = "\n".join(lines)
