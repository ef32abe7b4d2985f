"""mkdocs' hook: pages that live elsewhere in the repository, and links that leave docs/.

Links are written for the repository, where a reader follows them from file to file. In the site
those to another page become links to it; what is no page (code, folders) is named without a link.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FROM_ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "docker/README.md": "docker.md",
    **{
        f"benchmarks/results/{path.name}": f"results/{path.name}"
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    },
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^ *```.*?^ *``` *$", re.M | re.S)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are not in docs/."""
    from mkdocs.structure.files import File

    for source, page in FROM_ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites the links of a page."""
    return for_the_site(markdown, page.file.src_uri)


def for_the_site(markdown: str, page: str) -> str:
    """A page's text with its links as the site has them; code blocks stay as they are."""
    sources = {there: source for source, there in FROM_ELSEWHERE.items()}
    source = sources.get(page, f"docs/{page}")
    pieces, end = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [_rewritten(markdown[end : fence.start()], source, page), fence[0]]
        end = fence.end()
    return "".join([*pieces, _rewritten(markdown[end:], source, page)])


def _rewritten(text: str, source: str, page: str) -> str:
    def link(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return found[0]
        place, hash_, anchor = target.partition("#")
        wanted = os.path.normpath(os.path.join(os.path.dirname(source), place))
        there = _page_of(wanted)
        if there is None:
            return words
        place = os.path.relpath(there, os.path.dirname(page) or ".")
        return f"{image}[{words}]({place}{hash_}{anchor})"

    return _LINK.sub(link, text)


def _page_of(path: str) -> str | None:
    """The page, or image, of a file or folder of the repository, if it has one."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "benchmarks/results":
        return "benchmarks.md"
    return FROM_ELSEWHERE.get(path) or FROM_ELSEWHERE.get(f"{path}/README.md")
