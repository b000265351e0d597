"""The directive ``operators``: the schema of every operator that the library registers."""

from __future__ import annotations

import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import my_ops  # noqa: F401


class OperatorsDirective(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        schemas = (str(schema) for schema in torch._C._jit_get_all_schemas())
        ours = sorted(schema.removeprefix("my_ops::") for schema in schemas if schema.startswith("my_ops::"))
        return [nodes.literal_block(text=schema, language="text", classes=["wrapped"]) for schema in ours]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("operators", OperatorsDirective)
    return {"parallel_read_safe": True}
