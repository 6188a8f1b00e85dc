"""Data flow one way: what each package of this one may import; and one name, one file."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

import gaternet_jax

ROOT = Path(gaternet_jax.__file__).parent
BASE = ("errors", "files", "paths", "progress", "signals", "fields", "config", "validation", "older")
# Each imports from itself and from those before it.
ORDER = (
    "base",
    "nn",
    "gating",
    "models",
    "variants",
    "configs",
    "data",
    "workdir",
    "training",
    "run",
    "inference",
    "analysis",
)
NO_JAX = ("jax", "flax", "optax", "orbax", "tensorflow")


def imports(path: Path) -> set[str]:
    """Names of the modules that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "gaternet_jax"}
    return found


def part_of(module: str) -> str:
    """The part of the package that a module is in."""
    name = module.split(".")[1] if "." in module else "base"
    return "base" if name in BASE else name


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("part", ORDER)
def test_nothing_imports_what_comes_later(part):
    own = files(part) or [ROOT / f"{part}.py"] if part != "base" else [ROOT / f"{name}.py" for name in BASE]
    later = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in own
        for module in imports(path)
        if module.startswith("gaternet_jax.") and part_of(module) in ORDER
        if ORDER.index(part_of(module)) > ORDER.index(part)
    }
    assert later == set()


def test_gating_depends_on_jax_and_flax_only():
    """The layers of nn/ do, too; errors.py needs Python alone."""
    own, known = {"gating", "nn"}, {"jax", "flax", "numpy", *sys.stdlib_module_names}
    needs = {module for part in own for path in files(part) for module in imports(path)}
    ours = {module for module in needs if module.startswith("gaternet_jax.") and part_of(module) not in own}
    assert {module.partition(".")[0] for module in needs} - known == {"gaternet_jax"}
    assert ours == {"gaternet_jax.errors"}
    assert {module.partition(".")[0] for module in imports(ROOT / "errors.py")} <= sys.stdlib_module_names


def test_no_two_files_share_a_name():
    names = Counter(path.name for path in files("") if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_preparing_datasets_needs_no_jax():
    needs = {module for path in files("data/prepare") for module in imports(path) if module.startswith(NO_JAX)}
    assert {module for module in needs if not module.startswith("tensorflow_datasets")} == set()
