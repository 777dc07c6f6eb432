"""What the site has beside the pages of docs/: a hook of mkdocs.

Pages that stand elsewhere in the repository, and other files that pages link to, are given a place in the site, and
links to them lead there; on GitHub the same links lead to the files themselves. A notebook is a page. Two references
are made as the site is built: the commands' from the parser, and Python's from docstrings, of the names that a page
lists.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
#: {page of the repository: its name in the site}.
ELSEWHERE = {"tpu/README.md": "pods.md", "CONTRIBUTING.md": "contributing.md"}
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
_ITEM = re.compile(r"^- `(mvader_jax[\w.]*)`", re.M)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages and files from outside docs/."""
    for page, name in ELSEWHERE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / page)))
    for book in (ROOT / "docs").glob("*.ipynb"):
        files.append(File.generated(config, f"{book.stem}.md", content=_of_notebook(book)))
    for file in list(files.documentation_pages()):
        for target in _LINK.findall(file.content_string):
            path = _of_repository(file.src_uri, target)
            name = _in_site(path)
            if name not in files.src_uris and (ROOT / path).is_file():
                files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page as the site has it."""
    uri = page.file.src_uri
    text = _LINK.sub(lambda link: _in_site(_of_repository(uri, link[1])), markdown)
    return _MADE.get(uri, str)(text)


def _of_repository(uri: str, target: str) -> str:
    """The path in the repository of what a page of the site links to."""
    page = {name: path for path, name in ELSEWHERE.items()}.get(uri, f"docs/{uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _in_site(path: str) -> str:
    """Where a file of the repository lies in the site."""
    inside = path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}"
    return ELSEWHERE.get(path, re.sub(r"\.ipynb$", ".md", inside))


def _of_notebook(book: Path) -> str:
    """The cells of a notebook, those of code as blocks, and below its heading where to get it."""
    cells = [
        (cell["cell_type"], "".join(cell["source"]))
        for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]
    ]
    texts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells]
    given = f'<a href="{book.name}" download>{book.name}</a> is this page as a notebook.'
    heading, _, rest = texts[0].partition("\n")
    return "\n\n".join([heading, given, rest, *texts[1:]])


def _with_objects(text: str) -> str:
    """Below each section what its list names, by docstrings; the list leads there."""
    sections = []
    for section in re.split(r"^(?=## )", text, flags=re.M):
        named = _ITEM.findall(section)
        linked = _ITEM.sub(r"- [`\1`][\1]", section)
        sections.append("\n\n".join([linked.rstrip(), *(f"::: {one}" for one in named)]))
    return "\n\n".join(sections) + "\n"


_MADE: dict[str, Callable[[str], str]] = {
    "commands.md": lambda text: f"{text}\n\n{commands.reference()}",
    "api.md": _with_objects,
    "parts.md": _with_objects,
}
