"""Docstrings as Markdown: they are Google style, with reStructuredText's equations and references in places."""

import re
import textwrap
from typing import Any

import griffe

BLOCK = re.compile(r"^( *)\.\. math:: *(.*)\n((?:\1 +.*\n|\n)*)", re.MULTILINE)


def markdown(text: str) -> str:
    """The docstring with Markdown's equations, code for references, and examples under a name that is parsed."""

    def equation(match: re.Match[str]) -> str:
        indent = match[1]
        body = "\n".join(filter(None, [match[2].strip(), textwrap.dedent(match[3]).strip()]))
        if "\\\\" in body or "&" in body:
            body = f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"
        return textwrap.indent(f"\n$$\n{body}\n$$\n\n", indent, lambda line: bool(line.strip()))

    text = BLOCK.sub(equation, text + "\n")
    text = re.sub(r":math:`([^`]+)`", lambda match: f"${' '.join(match[1].split())}$", text)
    text = re.sub(r":(?:class|meth|func|mod):`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


class MarkdownDocstrings(griffe.Extension):
    """Converts every docstring as it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe calls this for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
