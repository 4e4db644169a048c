"""Every public name of the library with the state of its docstring: `python -m tests.names`.

The library is what the pages of `docs/reference` show: modules, each named by a line `::: rlx2_jax...`, whole or with
some of its members alone.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests.conftest import ROOT

PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
SHOWN = re.compile(r"^::: (rlx2_jax[\w.]*)\n(?:    options:\n      members: (false|\[.*\]))?", re.MULTILINE)


class Name(NamedTuple):
    """A public name."""

    module: str
    name: str
    """Within the module, such as `Config.env`."""
    kind: str
    documented: bool

    @property
    def path(self):
        return f"{self.module}.{self.name}"


def shown(text):
    """Modules that a page shows, with the members that it is limited to, or None."""
    for module, members in SHOWN.findall(text):
        yield module, None if not members else set(re.findall(r"\w+", members)) - {"false"}


def library():
    """All public names, page by page."""
    for page in PAGES:
        for module, members in shown(page.read_text()):
            yield from (n for n in names(module) if members is None or n.name.partition(".")[0] in members)


def names(module):
    """Names that a module defines: classes with their members, functions, and what is assigned."""
    found = importlib.import_module(module)
    assert inspect.getdoc(found), f"{module} has no docstring"
    yield from _within(module, ast.parse(inspect.getsource(found)).body, "")


def _within(module: str, body: list[ast.stmt], prefix: str) -> Iterator[Name]:
    for node, following in zip(body, [*body[1:], None], strict=True):
        name = _name_of(node)
        if name is None or name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            told = bool(ast.get_docstring(node))
        else:
            told = _is_text(following)
        state = told or _told_elsewhere(module, prefix, name, node)
        kind = {ast.ClassDef: "class", ast.FunctionDef: "function"}.get(type(node), "value")
        yield Name(module, prefix + name, kind, state)
        if isinstance(node, ast.ClassDef):
            yield from _within(module, node.body, f"{prefix}{name}.")


def _name_of(node: ast.stmt) -> str | None:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return None
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    variable = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in ("TypeVar", "ParamSpec")
    return target.id if isinstance(target, ast.Name) and not variable else None


def _is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _told_elsewhere(module: str, prefix: str, name: str, node: ast.stmt) -> bool:
    """Whether a setting's declaration, the docstring of its class or a class above it says what a member is."""
    if not prefix:
        return False
    if isinstance(node, ast.AnnAssign) and node.value is not None and ast.unparse(node.value).startswith("declare("):
        return True
    owner = getattr(importlib.import_module(module), prefix.rstrip("."))
    if f"\n  {name}: " in (inspect.getdoc(owner) or ""):
        return True
    above = [base for base in owner.__mro__[1:] if base.__module__.startswith("rlx2_jax") and name in _own(base)]
    return any(
        other.documented
        for base in above
        for other in names(base.__module__)
        if other.name == f"{base.__name__}.{name}"
    )


def _own(cls: type) -> set[str]:
    return {*vars(cls), *vars(cls).get("__annotations__", {})}


if __name__ == "__main__":
    listed = list(library())
    for each in listed:
        print(f"{'documented' if each.documented else 'MISSING':<12}{each.kind:<12}{each.path}")
    missing = sum(not each.documented for each in listed)
    print(f"{len(listed)} public names, {missing} without a docstring")
    sys.exit(missing > 0)
