"""What MkDocs does not do by itself: pages of the repository outside of this folder, the algorithms, and the version.

The pages here are read on a repository's web view as well, so their links are those of the repository. In the site,
what they link to outside of this folder (results, the log, sources) is added, and the links are turned to it.

The algorithms stand in one table, of `algorithms/index.md`: the navigation and the API reference follow it.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")
# First column of the table of algorithms: class and page.
ALGORITHM = re.compile(r"^\| \[`(\w+)`\]\(([^)]+)\)", re.MULTILINE)
# Pages that some checkouts have.
OPTIONAL_PAGES = {"benchmark.md": "The benchmark", "sb3_contract.md": "What of SB3's contract is covered"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show the version, which stands in one place, and add the algorithms' pages and the optional ones."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "storm_rl/version.py").read_text())
    assert version is not None
    config.copyright = f"storm-rl {version[1]}"
    assert config.nav is not None
    (section,) = (entry["Algorithms"] for entry in config.nav if "Algorithms" in entry)
    # An algorithm without a page of its own is linked to its place in the API reference.
    section.extend(os.path.normpath(f"algorithms/{page}") for _, page in algorithms() if "#" not in page)
    config.nav.extend({title: page} for page, title in OPTIONAL_PAGES.items() if (DOCS / page).exists())
    return config


def algorithms() -> list[tuple[str, str]]:
    """Class and page of each algorithm, in the order of the table."""
    return ALGORITHM.findall((DOCS / "algorithms/index.md").read_text())


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is linked to outside of this folder, and what that links to."""
    pages = [Path(str(file.abs_src_path)) for file in files.documentation_pages()]
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
    """Turn the links of the repository to those of the site, and list the algorithms in the API reference."""
    if page.file.src_uri == "api/algorithms.md":
        return "\n\n".join([markdown, *(f"::: storm_rl.{name}" for name, _ in algorithms())])
    path = Path(str(page.file.abs_src_path))

    def in_site(match: re.Match[str]) -> str:
        target = (path.parent / match[2]).resolve()
        if not target.is_file():
            return match[0]
        uri = target.relative_to(DOCS if target.is_relative_to(DOCS) else ROOT)
        return match[1] + os.path.relpath(uri, Path(page.file.src_uri).parent)

    return LINK.sub(in_site, markdown)
