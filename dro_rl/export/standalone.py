"""pipeline.py of an exported pair: the modules that it is made of, joined into one file.

What makes prompts and reads selections is there once, in `dro_rl.prompts` and
`dro_rl.policy.distinct`; a second version, written for the export, would drift from it.
"""

from __future__ import annotations

import ast
from importlib import metadata, resources

_PARTS = (
    ("export/pipeline.py", ""),
    ("prompts.py", "prompts, and how identifiers are written and read"),
    ("policy/distinct.py", "which tokens may come next, where only valid selections are written"),
    ("records.py", "records"),
    ("errors.py", "errors"),
)
_ALONE = {"records.py": "Document"}  # the rest of it belongs to training


def standalone() -> str:
    """The source: its docstring, all imports, and each module's code without its imports from
    dro_rl."""
    folder = resources.files("dro_rl")
    sources = {name: (folder / name).read_text(encoding="utf-8") for name, _ in _PARTS}
    trees = {name: ast.parse(source) for name, source in sources.items()}
    needed = [n for name, tree in trees.items() if name not in _ALONE for n in _imports(tree)]
    docstring = ast.get_docstring(trees["export/pipeline.py"], clean=False)
    parts = [f'"""{docstring}"""', _written(needed)]
    for name, title in _PARTS:
        rule = f"# --- {title} ".ljust(100, "-") + "\n\n" if title else ""
        parts.append(rule + _code(sources[name], trees[name], _ALONE.get(name)))
    version = metadata.version("dro-rl")
    return (
        f"# Written by `dro-rl export` of dro_rl {version} (Apache-2.0).\n"
        + "\n\n\n".join(parts)
        + "\n"
    )


def _imports(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    """What a module imports, for its types too, but for what is of dro_rl."""
    types = [n for node in tree.body if _is_for_types(node) for n in node.body]  # type: ignore[attr-defined]
    found = [n for n in (*tree.body, *types) if isinstance(n, ast.Import | ast.ImportFrom)]
    return [n for n in found if not (isinstance(n, ast.ImportFrom) and _is_ours(n.module or ""))]


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in ("dro_rl", "__future__")


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _written(imports: list[ast.Import | ast.ImportFrom]) -> str:
    """Each name once, in order."""
    plain = {f"import {a.name}" for n in imports if isinstance(n, ast.Import) for a in n.names}
    named: dict[str, set[str]] = {}
    for node in imports:
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names} - {"TYPE_CHECKING"}
            named.setdefault(str(node.module), set()).update(names)
    lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in named.items()]
    return "\n".join(["from __future__ import annotations", "", *sorted(plain), *sorted(lines)])


def _code(source: str, tree: ast.Module, alone: str | None) -> str:
    """A module's lines without docstring and imports, or those of one class."""
    lines = source.splitlines()
    gone: set[int] = set()
    for i, node in enumerate(tree.body):
        is_docstring = i == 0 and isinstance(node, ast.Expr)
        is_import = isinstance(node, ast.Import | ast.ImportFrom) or _is_for_types(node)
        unwanted = alone is not None and getattr(node, "name", None) != alone
        if is_docstring or is_import or unwanted:
            decorators = getattr(node, "decorator_list", [])
            first = min([node.lineno, *(d.lineno for d in decorators)])
            gone.update(range(first, (node.end_lineno or first) + 1))
    return "\n".join(line for i, line in enumerate(lines, start=1) if i not in gone).strip()
