"""What MkDocs does not do by itself: pages of the repository outside of this folder, the algorithms, equations.

The pages here are read on a repository's web view as well, so their links are those of the repository. In the site,
what they link to outside of this folder (results, the log, sources) is added, and the links are turned to it. The home
page takes its text from the README.

The algorithms stand in one table, of `algorithms/index.md`: the navigation and the API reference follow it.
"""

import html
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from math_core import LatexError, LatexToMathML
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")
# First column of the table of algorithms: class and page.
ALGORITHM = re.compile(r"^\| \[`(\w+)`\]\(([^)]+)\)", re.MULTILINE)
# A part of the README, and the place of the home page that it goes to.
PART = re.compile(r"<!-- (\w+): begin -->\n(.*?)<!-- \1: end -->", re.DOTALL)
PLACE = re.compile(r"<!-- README: (\w+) -->")
# As pymdownx.arithmatex leaves them, in its generic form.
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show the version and the repository, which stand in one place each, and complete the navigation."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "storm_rl/version.py").read_text())
    assert version is not None
    config.site_name = config.copyright = f"storm-rl {version[1]}"
    config.repo_url = config.repo_url or repository()
    assert config.nav is not None
    sections = {title: entries for entry in config.nav for title, entries in entry.items()}
    # An algorithm without a page of its own is linked to its place in the API reference.
    pages = [os.path.normpath(f"algorithms/{page}") for _, page in algorithms() if "#" not in page]
    sections["Algorithms"][1:1] = pages
    named = {*pages, *(page for entries in sections.values() for entry in entries for page in _pages(entry))}
    sections["Guides"].extend(sorted({path.name for path in DOCS.glob("*.md")} - named))
    return config


def _pages(entry: str | dict[str, str]) -> list[str]:
    return [entry] if isinstance(entry, str) else list(entry.values())


def repository() -> str | None:
    """The address of the clone's origin, if it is one that a browser can open."""
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    try:
        origin = subprocess.run(command, capture_output=True, text=True).stdout.strip().removesuffix(".git")
    except OSError:
        return None
    address = re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", origin)
    return address if address.startswith("https://") else None


def algorithms() -> list[tuple[str, str]]:
    """Class and page of each algorithm, in the order of the table."""
    return ALGORITHM.findall((DOCS / "algorithms/index.md").read_text())


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is linked to outside of this folder, and what that links to."""
    pages = [ROOT / "README.md", *(Path(str(file.abs_src_path)) for file in files.documentation_pages())]
    added: set[Path] = set()
    while pages:
        page = pages.pop()
        for match in LINK.finditer(page.read_text()):
            target = (page.parent / match[2]).resolve()
            if not target.is_file() or target.is_relative_to(DOCS) or target in added:
                continue
            added.add(target)
            if target.suffix == ".md":
                pages.append(target)
    for path in sorted(added):
        files.append(File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn the links of the repository to those of the site, fill the home page, and list the algorithms in the API."""
    if page.file.src_uri == "api/algorithms.md":
        return markdown.replace("<!-- algorithms -->", "\n\n".join(f"::: storm_rl.{name}" for name, _ in algorithms()))
    markdown = LINK.sub(_in_site(Path(str(page.file.abs_src_path)), page), markdown)
    if page.file.src_uri == "index.md":
        readme = ROOT / "README.md"
        parts = {name: LINK.sub(_in_site(readme, page), text) for name, text in PART.findall(readme.read_text())}
        markdown = PLACE.sub(lambda match: parts[match[1]], markdown)
    return markdown


def _in_site(source: Path, page: Page) -> Callable[[re.Match[str]], str]:
    """Replaces a link in the text of ``source`` by one from ``page``."""

    def replace(match: re.Match[str]) -> str:
        target = (source.parent / match[2]).resolve()
        if not target.is_file():
            return match[0]
        uri = target.relative_to(DOCS if target.is_relative_to(DOCS) else ROOT)
        return match[1] + os.path.relpath(uri, Path(page.file.src_uri).parent)

    return replace


def on_page_content(html_text: str, page: Page, **_: Any) -> str:
    """Turn equations to MathML, which browsers show without a script."""
    equations = [(html.unescape(match[3]), match[2] == "[") for match in EQUATION.finditer(html_text)]
    try:
        rendered = iter(LatexToMathML().convert_all(equations))
    except LatexError as error:
        raise PluginError(f"{page.file.src_uri}: an equation is not understood: {error}") from error
    return EQUATION.sub(lambda match: f'<{match[1]} class="arithmatex">{next(rendered)}</{match[1]}>', html_text)
