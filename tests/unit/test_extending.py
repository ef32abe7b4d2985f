"""The worked examples of docs/extending.md, run from the page."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.documents import ROOT

pytestmark = pytest.mark.unit

_FIRST_LINE = re.compile(r"# (?:in (?:make_retriever of )?)?(\S+?\.py)")


def sections() -> dict[str, list[tuple[str, str]]]:
    """By heading, (first line, code) of each block of Python."""
    page = (ROOT / "docs" / "extending.md").read_text()
    found: dict[str, list[tuple[str, str]]] = {}
    for part in re.split(r"^## ", page, flags=re.M)[1:]:
        title = part.splitlines()[0]
        code = re.findall(r"^```python\n(.*?)^```", part, re.M | re.S)
        found[title] = [(block.splitlines()[0], block) for block in code]
    return found


def dotted(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("title", sections())
def test_an_example_works_as_it_stands(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = 0
    for first, code in sections()[title]:
        named = _FIRST_LINE.match(first)
        assert named, f"the first line says where a block belongs: {first}"
        name = named[1]
        if name.startswith("rewards/"):
            (tmp_path / "rewards").mkdir()
            (tmp_path / name).write_text(code)
        elif name.startswith("tests/"):
            ran += run_tests(code, name, tmp_path)
        elif first.startswith("# in make_retriever"):
            compile(f"def inside(settings, cache, say):\n{indented(code)}", name, "exec")
        elif first.startswith("# in "):
            change(importlib.import_module(dotted(name)), code, monkeypatch)
        else:
            add_module(dotted(name), code, tmp_path / name, monkeypatch)
    assert ran


def indented(code: str) -> str:
    return "".join(f"    {line}" for line in code.splitlines(keepends=True))


def change(module: ModuleType, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run code in a module of the package, which afterwards is what it was."""
    before = dict(vars(module))
    tables = {k: dict(v) for k, v in before.items() if k in ("_BY_GROUP", "_LAYOUTS")}
    package = module.__name__
    for line in re.findall(r"= (\w+)\.\w+$", code, re.M):  # a new module that a table names
        monkeypatch.setitem(vars(module), line, sys.modules[f"{package}.{line}"])
    exec(compile(code, module.__file__ or "", "exec"), vars(module))
    for name in vars(module).keys() - before.keys():
        new = vars(module).pop(name)
        monkeypatch.setattr(module, name, new, raising=False)
    for name, table in tables.items():
        current = dict(vars(module)[name])
        vars(module)[name].clear()
        vars(module)[name].update(table)
        for key, value in current.items():
            monkeypatch.setitem(vars(module)[name], key, value)


def add_module(name: str, code: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new module of the package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)


def run_tests(code: str, name: str, folder: Path) -> int:
    """Run the tests of a block; how many there were."""
    names: dict[str, object] = {"__name__": dotted(name)}
    exec(compile(code, name, "exec"), names)
    tests = {k: v for k, v in names.items() if k.startswith("test_") and inspect.isfunction(v)}
    for number, test in enumerate(tests.values()):
        place = folder / f"test-{number}"
        place.mkdir()
        test(**({"tmp_path": place} if "tmp_path" in inspect.signature(test).parameters else {}))
    return len(tests)
