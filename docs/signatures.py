"""For the reference pages: the signatures of the mixing modules as they are when the package runs.

The pages are made from the sources, in which a module's `__init__` has `**options: Unpack[Options]`. The decorator
`fusedmix.options.spelled_out` writes the keywords out; here its result is taken over.
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
            _spell_out(cls, ours)


def _spell_out(cls: griffe.Class, ours: type) -> None:
    init = cls.members["__init__"]
    written = {parameter.name for parameter in init.parameters}
    if "options" not in written:
        return
    del init.parameters["options"]
    for name, parameter in inspect.signature(ours).parameters.items():
        if name not in written:
            kind, annotation = griffe.ParameterKind.keyword_only, inspect.formatannotation(parameter.annotation)
            init.parameters.add(
                griffe.Parameter(name, annotation=annotation, kind=kind, default=repr(parameter.default))
            )
    cls.docstring.value = ours.__doc__


def _add_defaults(cls: griffe.Class) -> None:
    lines = []
    for line in cls.docstring.value.splitlines():
        name = line.strip().partition(":")[0]
        lines.append(line.replace(": ", f": (Default: `{DEFAULTS[name]!r}`.) ", 1) if name in DEFAULTS else line)
    cls.docstring.value = "\n".join(lines)
