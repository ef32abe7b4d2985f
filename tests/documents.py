"""Commands and code of README and docs."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / folder / "README.md" for folder in ("benchmarks", "docker")),
    ]
)
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
OURS = ("dro-rl", "make", "python", "pytest")
_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
_INLINE = re.compile(r"`([^`\n]+)`")
_SUBSTITUTED = re.compile(r"\$\(.*\)")  # what a shell would put in


@dataclass(frozen=True)
class Command:
    """A command that a page shows.

    `whole`: it is there to be typed, in a block of its own or after "First:" and the like of a
    recipe's comment; otherwise it is named in a sentence, and arguments may be left out.
    """

    page: str
    text: str
    words: tuple[str, ...]
    whole: bool

    @property
    def program(self) -> str:
        return Path(self.words[0]).name

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def commands() -> list[Command]:
    """Those of shell blocks, of sentences where they are ours, and of recipes' comments."""
    found: list[Command] = []
    for path in PAGES:
        page, text = str(path.relative_to(ROOT)), path.read_text()
        for language, block in _BLOCK.findall(text):
            if language == "sh":
                found += _read(page, block, whole=True)
        for words in _INLINE.findall(_BLOCK.sub("", text)):
            if words.startswith(tuple(f"{program} " for program in OURS)) and "<" not in words:
                found += _read(page, words, whole=False)
    for path in RECIPES:
        comments = [line for line in path.read_text().splitlines() if line.startswith("#   ")]
        block = "\n".join(line.removeprefix("#   ") for line in comments)
        found += _read(str(path.relative_to(ROOT)), block, whole=True)
    return found


def _read(page: str, block: str, *, whole: bool) -> list[Command]:
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            typed = _SUBSTITUTED.sub("SUBSTITUTED", part.removeprefix("$ "))
            words = tuple(shlex.split(typed, comments=True))
            if words:
                found.append(Command(page, part.strip(), words, whole))
    return found
