"""Runs the Python of a document as a reader would who pastes it from the top: block after block, in one namespace that
begins empty.

A comment below a statement that begins with the name of an error or a warning says what the statement raises:

    fm.CutMix(num_classes=3)(images, labels)
    # ValueError: labels must be in [0, num_classes) = [0, 3), but got 3

`...` stands for what is left out of a message. `<!-- needs: timm, a GPU -->` above a block, which no reader sees, says
without what it is left out.
"""

from __future__ import annotations

import ast
import os
import re
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NamedTuple

import torch

UNINSTALLED = ("composer", "fastai", "keras")  # libraries that no extra installs: may be absent in CI, too
_FENCE = r"(?:^<!-- needs: (?P<needs>[^\n]*) -->\n+)?^```{language}\n(?P<text>.*?)^```"
_RAISED = re.compile(r"# (?P<name>\w*(?:Error|Warning)): (?P<message>.*)")


class Block(NamedTuple):
    """A fenced block."""

    text: str
    line: int  # how many lines of the document stand above it
    needs: tuple[str, ...]  # the packages without which it is left out; "a GPU"

    @property
    def lacks(self) -> list[str]:
        """What it needs and is not there."""
        return [name for name in self.needs if not _is_here(name)]


def _is_here(name):
    if name == "a GPU":
        return torch.cuda.is_available()
    wanted = os.environ.get("CI") and name not in UNINSTALLED  # Where CI lacks it, the import fails.
    return bool(wanted) or find_spec(name) is not None


def blocks(path, language):
    """The fenced blocks of a document."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(_FENCE.format(language=language), text, re.DOTALL | re.MULTILINE)
    return [
        Block(
            match["text"],
            text[: match.start("text")].count("\n"),
            tuple(filter(None, re.split(", *", match["needs"] or ""))),
        )
        for match in found
    ]


def run(path):
    """Runs the blocks of a document; returns what those needed that were left out."""
    namespace, lacking = {"__name__": path.stem}, set()
    for block in blocks(path, "python"):
        if block.lacks:
            lacking |= set(block.lacks)
        else:
            _run(block, namespace, path)
    return sorted(lacking)


def _run(block, namespace, path):
    lines = block.text.splitlines()
    for statement in ast.parse(block.text).body:
        said = _said(lines[statement.end_lineno :])
        ast.increment_lineno(statement, block.line)
        with _raised(said):
            exec(compile(ast.Module([statement], []), str(path), "exec"), namespace)


def _said(below):
    """The name and the message of what a statement raises, by the comment below it; None if it raises nothing."""
    first = _RAISED.fullmatch(below[0]) if below else None
    if first is None:
        return None
    message = [first["message"]]
    for line in below[1:]:
        if not line.startswith("#"):
            break
        message.append(line.removeprefix("#"))
    return first["name"], " ".join(" ".join(message).split())


@contextmanager
def _raised(said):
    if said is None:
        yield
        return
    (name, message), error = said, None
    try:
        with warnings.catch_warnings():
            if name.endswith("Warning"):
                warnings.simplefilter("error")
            yield
    except Exception as raised:
        error = raised
    assert error is not None, f"nothing raised {name}: {message}"
    assert name in [cls.__name__ for cls in type(error).__mro__], f"{type(error).__name__}, not {name}"
    pattern = ".*".join(map(re.escape, re.split(r" ?\.\.\. ?", message)))
    assert re.search(pattern, " ".join(str(error).split())), f"{error}\ndoes not say\n{message}"
