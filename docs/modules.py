"""For the reference page of the mixing modules: an entry for each that `fusedmix.transforms` makes public."""

from __future__ import annotations

from typing import Any

from fusedmix import transforms

PLACE = "<!-- the modules of fusedmix/transforms.py -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(PLACE, "\n\n".join(map(_entry, _modules())))


def _modules() -> list[type]:
    """In the order of the source."""
    found = [x for name, x in vars(transforms).items() if name in transforms.__all__]
    return [x for x in found if x is not transforms.MixTransform]


def _entry(module: type) -> str:
    """With the properties that it has of a class that is not public."""
    bases = [base for base in module.__mro__[1:] if issubclass(base, transforms.MixTransform)]
    bases.remove(transforms.MixTransform)
    inherited = [name for base in bases for name, x in vars(base).items() if isinstance(x, property) and name[0] != "_"]
    options = f"\n    options: {{ inherited_members: [{', '.join(inherited)}] }}" if inherited else ""
    return f"::: fusedmix.{module.__name__}{options}"
