"""One list of sections, written as an HTML page and as Markdown; their figures are files beside them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import pandas as pd
from markdown_it import MarkdownIt

MARKDOWN = MarkdownIt("commonmark", {"html": False})
# Characters from which on a cell's text may break into lines.
LONG = 48
# Columns up to which a page is wide enough for a table.
MOST_COLUMNS = 9


@dataclass(frozen=True)
class Table:
    """A table of text; ``folded`` ones open on a click, with a ``note``. Cells and words may hold Markdown."""

    rows: pd.DataFrame
    caption: str = ""
    folded: bool = False
    note: str = ""

    @property
    def fitted(self) -> pd.DataFrame:
        """The rows, or, of more columns than a page is wide enough for, the columns as rows."""
        if len(self.rows.columns) <= MOST_COLUMNS or len(self.rows) >= MOST_COLUMNS:
            return self.rows
        turned = self.rows.set_index(self.rows.columns[0]).T.fillna("")
        return turned.rename_axis("", axis=1).reset_index(names="")


@dataclass(frozen=True)
class Image:
    """A figure.

    Attributes:
        name: Its file's name, with its ending.
        content: The file's content.
        title: What it shows, for those who cannot see it.
        caption: How to read it, in Markdown.
        narrow: The same figure for a phone; empty where there is none.
    """

    name: str
    content: bytes
    title: str
    caption: str = ""
    narrow: bytes = b""

    def files(self) -> dict[str, bytes]:
        """The figure's files by name."""
        return {self.name: self.content, **({self.narrow_name: self.narrow} if self.narrow else {})}

    @property
    def narrow_name(self) -> str:
        """Name of the file for a phone."""
        path = Path(self.name)
        return f"{path.stem}_narrow{path.suffix}"


@dataclass(frozen=True)
class Section:
    """A heading and what is under it, in Markdown; items without rows are left out."""

    title: str
    text: str = ""
    items: Sequence[Table | Image] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """What links to it end in, after #."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Report:
    """A title, an introduction, figures to be seen at a glance (value and meaning), and sections."""

    title: str
    introduction: str
    glance: Sequence[tuple[str, str]]
    origin: str
    sections: Sequence[Section]
    # The first cell of the rows to be marked.
    marked: str = ""


PAGE = Template((Path(__file__).parent / "page.html").read_text())


def as_html(report: Report) -> str:
    """The page; its images lie beside it."""
    sections = []
    for section in report.sections:
        items = "\n".join(_html_item(item, report.marked) for item in section.items)
        text = MARKDOWN.render(section.text)
        sections.append(
            f'<section id="{section.anchor}">\n<h2>{_inline(section.title)}</h2>\n{text}{items}\n</section>'
        )
    page = PAGE.substitute(
        title=_inline(report.title),
        introduction=MARKDOWN.render(report.introduction),
        glance="\n".join(f"<li><b>{_inline(value)}</b> {_inline(what)}</li>" for value, what in report.glance),
        contents="\n".join(
            f'<li><a href="#{section.anchor}">{_inline(section.title)}</a></li>' for section in report.sections
        ),
        origin=_inline(report.origin),
        sections="\n".join(sections),
    )
    # No line breaks between a number and its percent sign.
    return page.replace(" %", "\u00a0%")


def _html_item(item: Table | Image, marked: str) -> str:
    if isinstance(item, Image):
        image = f'<img alt="{_inline(item.title)}" src="{item.name}">'
        if item.narrow:
            image = f'<picture><source media="(max-width: 700px)" srcset="{item.narrow_name}">{image}</picture>'
        else:
            image = f'<div class="wide">{image}</div>'
        return f"<figure>{image}<figcaption>{_inline(item.caption)}</figcaption></figure>"
    if not len(item.rows):
        return ""
    rows = item.fitted.astype(str)
    head = "".join(f"<th>{_inline(str(name))}</th>" for name in rows.columns)
    body = ""
    for row in rows.to_numpy():
        cells = "".join(f"<td{' class=long' * (len(cell) > LONG)}>{_inline(cell)}</td>" for cell in row)
        body += f"<tr{' class=marked' * (row[0] == marked)}>{cells}</tr>\n"
    table = f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'
    if item.folded:
        note = f'<p class="caption">{_inline(item.note)}</p>' if item.note else ""
        return f"<details><summary>{_inline(item.caption)}</summary>{note}{table}</details>"
    return f'<p class="caption">{_inline(item.caption)}</p>{table}' if item.caption else table


def _inline(text: str) -> str:
    rendered: str = MARKDOWN.renderInline(text)
    return rendered


def as_markdown(report: Report) -> str:
    """The same for a repository's web view."""
    parts = [f"# {report.title}", report.introduction, f"*{report.origin}*"]
    parts.append("\n".join(f"- [{section.title}](#{section.anchor})" for section in report.sections))
    for section in report.sections:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        for item in section.items:
            if isinstance(item, Image):
                parts += [f"![{item.title}]({item.name})", *([item.caption] if item.caption else [])]
            elif len(item.rows):
                words = " ".join(text for text in (item.caption, item.note) if text)
                parts += [*([words] if words else []), markdown_table(item.fitted)]
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: pd.DataFrame) -> str:
    """The rows as a Markdown table; the first column left, the others right."""
    lines = [[str(name) for name in rows.columns], ["---", *["---:"] * (len(rows.columns) - 1)]]
    lines += [[str(cell).replace("|", r"\|") for cell in row] for row in rows.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
