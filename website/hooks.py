"""Hooks of MkDocs: pages that are made, links between files of the repository, a last look."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from website.algorithm_pages import algorithm_pages
from website.notebooks import notebook_pages
from website.reference import reference_pages

ROOT = Path(__file__).parents[1]
AT_THE_TOP = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "README.md")
COOKBOOK_FIRST = ("hospitals", "folders", "text", "next_word", "segmentation", "regression", "lora",
                  "timm", "study", "algorithm")  # fmt: skip
_LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*?\ssrc=[\"']?(?:https?:)?//[^>]*"
    r"|<link\b(?=[^>]*rel=[\"']?(?:stylesheet|preload|preconnect|icon))[^>]*href=[\"']?(?:https?:)?//[^>]*"
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the parts of the navigation that follow from the repository's files."""
    made: dict[str, list[Any]] = {
        "Cookbook": [f"cookbook/{path.name}" for path in _cookbook()],
        "Notebooks": [{title: path} for path, title, *_ in notebook_pages(ROOT / "notebooks")],
        "One by one": [{title: path} for path, title, _ in algorithm_pages(ROOT)],
        "API": [{title: path} for path, title, _ in reference_pages()],
    }
    _fill(config.nav, made)
    return config


def _fill(nav: Any, made: dict[str, list[Any]]) -> None:
    for entry in nav:
        for title, below in entry.items() if isinstance(entry, dict) else ():
            if title in made:
                entry[title] = made[title]
            elif isinstance(below, list):
                _fill(below, made)


def _cookbook() -> list[Path]:
    """Return the pages of the cookbook in the order of the navigation, unknown ones last."""
    pages = sorted((ROOT / "docs" / "cookbook").glob("*.md"))
    order = {name: at for at, name in enumerate(COOKBOOK_FIRST)}
    return sorted(pages, key=lambda path: order.get(path.stem, len(order)))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = [(path, text) for path, _, text in (*algorithm_pages(ROOT), *reference_pages())]
    for path, _, text, notebook in notebook_pages(ROOT / "notebooks"):
        made += [(path, text), (path.replace(".md", ".ipynb"), notebook)]
    made += [(name, (ROOT / name).read_text("utf-8")) for name in AT_THE_TOP]
    for path, text in made:
        shown = "overview.md" if path == "README.md" else path
        files.append(File.generated(config, shown, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    if page.file.src_uri in ("overview.md", *AT_THE_TOP):
        markdown = re.sub(r"\]\(docs/", "](", markdown)
    markdown = markdown.replace("](../README.md", "](overview.md")
    for name in AT_THE_TOP:
        markdown = markdown.replace(f"](../{name}", f"]({name}")
    markdown = markdown.replace("](notebooks/)", "](notebooks/quickstart.md)")
    return markdown.replace("](LICENSE)", "](https://www.apache.org/licenses/LICENSE-2.0)")


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that loads anything from elsewhere."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        if found := _LOADED.search(path.read_text("utf-8")):
            raise PluginError(f"{path}: loads from elsewhere: {found[0][:120]}")
