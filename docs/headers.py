"""The directive ``header``: what a C++ header declares, with the comments that stand before it.

Documented is what ``///`` lines precede: a function up to its ``;`` or ``{``, a class, or an alias. The comment before
``#pragma once`` introduces the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

INCLUDE = Path(__file__).parents[1] / "cpp" / "include"


@dataclass(frozen=True)
class Declaration:
    kind: str  # function, class or type
    signature: str  # without namespace and body
    namespace: str
    comment: str


def introduction(text: str) -> str:
    return _plain(text.split("#pragma once")[0].splitlines())


def declarations(text: str) -> Iterator[Declaration]:
    """Everything in a header that has a ``///`` comment."""
    namespaces: list[str] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        if opened := re.match(r"namespace ([\w:]+) \{", line):
            namespaces.append(opened[1])
        elif line.startswith("}  // namespace"):
            namespaces.pop()
        elif line.startswith("///"):
            comment = list(takewhile(lambda line: line.startswith("///"), lines[number:]))
            number += len(comment)
            kind, signature = _signature("\n".join(lines[number:]))
            yield Declaration(kind, signature, "::".join(namespaces), _plain(comment))
        number += 1


def _signature(text: str) -> tuple[str, str]:
    """The declaration that `text` begins with: its kind, and the whole on one line."""
    if found := re.match(r"(template <.*>\s)?(?:class|struct) (\w+)", text):
        return "class", f"{found[1] or ''}{found[2]}".replace("\n", " ")
    if found := re.match(r"using (\w+ = [^;]+);", text):
        return "type", found[1]
    depth = 0
    for end, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character in ";{":
            return "function", " ".join(text[:end].removeprefix("inline ").split())
    raise ValueError(f"expected a declaration, got {text[:60]!r}")


def _plain(comment: list[str]) -> str:
    return "\n".join(re.sub(r"^///? ?", "", line) for line in comment).strip()


class HeaderDirective(SphinxDirective):
    """``header:: my_ops/ops.h`` as entries of Sphinx's C++ domain."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = INCLUDE / self.arguments[0]
        self.env.note_dependency(str(path))
        text = path.read_text()
        lines = [*_literal(introduction(text)), ""]
        for declaration in declarations(text):
            lines += [f".. cpp:namespace:: {declaration.namespace}", ""]
            lines += [f".. cpp:{declaration.kind}:: {declaration.signature}", ""]
            lines += [f"   {line}" for line in _literal(declaration.comment)] + [""]
        parent = nodes.container()
        self.state.nested_parse(StringList(lines, source=str(path)), self.content_offset, parent)
        return parent.children


def _literal(comment: str) -> list[str]:
    """Comments are plain text: what reStructuredText would read as markup is escaped."""
    return re.sub(r"([\\*`|_])", r"\\\1", comment).splitlines()


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("header", HeaderDirective)
    return {"parallel_read_safe": True}
