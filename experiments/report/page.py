"""One list of sections, written as a self-contained HTML page and as Markdown."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from string import Template

import pandas as pd


@dataclass(frozen=True)
class Table:
    """A table of text."""

    rows: pd.DataFrame
    caption: str = ""


@dataclass(frozen=True)
class Image:
    """A PNG: its file name without ending, its content, and what it shows in words."""

    name: str
    content: bytes
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading and what is under it; items without rows are left out."""

    title: str
    text: str = ""
    items: Sequence[Table | Image] = field(default_factory=list)


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #111; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; }
caption, figcaption { text-align: left; color: #444; font-size: 0.9rem; padding: 0.3rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.7rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #555; }
figure { margin: 1rem 0; break-inside: avoid; }
img { max-width: 100%; height: auto; }
@media print { body { max-width: none; margin: 0; font-size: 11px; } table { break-inside: avoid; } }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The page, with its images inside."""
    parts: list[str] = []
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.text:
            parts.append(f"<p>{html.escape(section.text)}</p>")
        for item in section.items:
            if isinstance(item, Image):
                source = base64.b64encode(item.content).decode()
                caption = html.escape(item.caption)
                parts.append(
                    f'<figure><img alt="{caption}" src="data:image/png;base64,{source}">'
                    f"<figcaption>{caption}</figcaption></figure>"
                )
            elif len(item.rows):
                table = item.rows.to_html(index=False, border=0, classes="")
                caption = f"<caption>{html.escape(item.caption)}</caption>" if item.caption else ""
                parts.append(f'<div class="wide">{table.replace("<thead>", caption + "<thead>", 1)}</div>')
    return PAGE.substitute(title=html.escape(title), body="\n".join(parts))


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The summary, whose images lie beside it."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        for item in section.items:
            if isinstance(item, Image):
                parts.append(f"![{item.caption}]({item.name}.png)")
            elif len(item.rows):
                if item.caption:
                    parts.append(item.caption)
                parts.append(markdown_table(item.rows))
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: pd.DataFrame) -> str:
    """The rows as a Markdown table; the first column left, the others right."""
    lines = [[str(name) for name in rows.columns], ["---", *["---:"] * (len(rows.columns) - 1)]]
    lines += [[str(cell).replace("|", r"\|") for cell in row] for row in rows.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
