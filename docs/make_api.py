"""Writes docs/api.md from the docstrings of the public names: python -m docs.make_api"""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gaternet_jax as gx

PAGE = Path(__file__).parent / "api.md"
HEAD = """# API

<!-- Made from docstrings by python -m docs.make_api; a test holds it up to date. -->

The examples presuppose these names, and a trained run in runs/digits ([the guide](guide.md) trains one):

    import gaternet_jax as gx
    import jax, jax.numpy as jnp, numpy as np
    from flax import nnx

Shapes: B images, H x W pixels, C channels, K classes, G gates. What a user gives wrongly is a
`gx.UserError`, a ValueError.
"""
GROUPS = {
    "Models": ("list_models", "create_model", "build_model", "GaterNet", "Outputs", "GateSite"),
    "Trained runs": ("load_run", "Run", "load_model"),
    "Training": ("gaternet_jax.training.loop.train",),
    "Fast inference": ("Predictor",),
    "Gates on any network": ("gate", "sem_hash", "Gater", "find_sites", "count_macs", "skip_closed", "write_onnx"),
    "What these return": (
        "gaternet_jax.gating.MacCount",
        "gaternet_jax.gating.SkipClosed",
        "gaternet_jax.gating.Prepared",
    ),
    "Losses of gates": ("losses.gate_l1", "losses.gate_target", "losses.gate_macs"),
    "Errors": ("UserError",),
}


def entries() -> Iterator[tuple[str, Any]]:
    """Gives the public names, as they are written, and what they stand for."""
    for names in GROUPS.values():
        yield from map(_entry, names)


def _entry(name: str) -> tuple[str, Any]:
    if name.startswith("gaternet_jax."):
        module, _, attribute = name.rpartition(".")
        return name, getattr(importlib.import_module(module), attribute)
    thing: Any = gx
    for part in name.split("."):
        thing = getattr(thing, part)
    return f"gx.{name}", thing


def modules() -> list[str]:
    """Names the modules that the public names are defined in."""
    return sorted({thing.__module__ for _, thing in entries()})


def docstring(thing: Any) -> str:
    """Gives a docstring without its indentation."""
    return inspect.cleandoc(thing.__doc__ or "")


def page() -> str:
    """Makes the page."""
    parts = [HEAD]
    for group, names in GROUPS.items():
        parts.append(f"## {group}\n")
        for name, thing in map(_entry, names):
            parts.append(f"### {name}\n\n{_block(name, thing)}")
            if inspect.isclass(thing):
                parts += [_block(f".{method}", found) for method, found in _methods(thing)]
    return "\n".join(parts)


def _methods(thing: type) -> Iterator[tuple[str, Any]]:
    """The methods and properties that a class documents itself, in the order of its code."""
    for name, found in vars(thing).items():
        function = found.__func__ if isinstance(found, classmethod) else found
        if (not name.startswith("_") or name == "__call__") and getattr(function, "__doc__", None):
            if inspect.isfunction(function):
                yield name, function
            elif isinstance(found, property):
                yield name, found


def _block(name: str, thing: Any) -> str:
    """The signature and the docstring, as they are written."""
    return f"```text\n{name}{_signature(thing)}\n\n{docstring(thing)}\n```\n"


def _signature(thing: Any) -> str:
    """The names of the arguments and their defaults; types stand in the docstrings."""
    if isinstance(thing, property) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return ""
    signature = inspect.signature(vars(thing).get("__init__", thing) if inspect.isclass(thing) else thing)
    empty = inspect.Parameter.empty
    kept = [p.replace(annotation=empty) for p in signature.parameters.values() if p.name not in ("self", "cls")]
    return str(signature.replace(parameters=kept, return_annotation=inspect.Signature.empty))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}")
