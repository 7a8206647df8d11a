"""Pages of the site that lie outside docs/: README, and others of the repository's root.

A hook of mkdocs. Links are written for GitHub, from file to file; here they become links between
pages. The markers of figures, which `python -m bench.tables` needs, are left out.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
ADDED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/digits.py": "example.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")
MARKER = re.compile(r"<!-- (?:figures: [\w-]+|end) -->")
CELL = re.compile(r"(?m)^# %%(.*)\n")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages, each from the file that GitHub shows."""
    for source, page in ADDED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = prose(text) if source.endswith(".py") else text
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Make links of files links of pages, and leave the markers of figures out."""
    sources = {page: source for source, page in ADDED.items()}
    folder = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def link(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        there = ADDED.get(path, path.removeprefix("docs/"))
        if (ROOT / path).is_dir():  # a folder has no page
            return text
        if not (ROOT / path).exists():  # not a link, or one that mkdocs is to complain of
            return match[0]
        return f"{picture}[{text}]({there}{anchor or ''})"

    return LINK.sub(link, MARKER.sub("", markdown))


def prose(code: str) -> str:
    """A script with cells as Markdown and blocks of code."""
    _, *cells = CELL.split(code)
    parts = []
    for kind, cell in zip(cells[::2], cells[1::2], strict=True):
        if "[markdown]" in kind:
            parts.append(re.sub(r"(?m)^# ?", "", cell.strip()))
        else:
            parts.append(f"```python\n{cell.strip()}\n```")
    return "\n\n".join(parts) + "\n"
