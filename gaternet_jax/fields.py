"""Fields of a config: each is declared once, with all that is known of it; the rest follows from the declarations.

    class TrainConfig(Section):
        batch_size: int = field(128, "images per step over all devices", source="He", above=0)

A declaration is for type checkers and readers: at run time a config is an ml_collections.ConfigDict with these fields,
made by `make`. `table` gives the declarations by name, `misfits` and `out_of_bounds` check values against them.
"""

import contextlib
import dataclasses
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ml_collections import ConfigDict

FLOAT32_MAX = 3.4028235e38  # what is larger is infinite on the devices
KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a sequence of numbers",
}


class Section:
    """Declares a part of a config, for type checkers: its fields, and what every part can do."""

    if TYPE_CHECKING:

        def to_dict(self) -> dict[str, Any]: ...
        def items(self) -> Iterator[tuple[str, Any]]: ...
        def update(self, *other: Any, **fields: Any) -> None: ...
        def update_from_flattened_dict(self, fields: Mapping[str, Any]) -> None: ...
        def copy_and_resolve_references(self) -> typing.Self: ...
        def lock(self) -> typing.Self: ...
        def unlock(self) -> typing.Self: ...
        def unlocked(self) -> contextlib.AbstractContextManager[Any]: ...
        def ignore_type(self) -> contextlib.AbstractContextManager[Any]: ...
        @property
        def is_locked(self) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Field:
    """Holds what is known of a field.

    Attributes:
        default: its value unless a run card or a flag gives another.
        text: what it is, with its unit.
        source: where the default comes from, see config.py; "" where there is nothing to know.
        at_least, above, at_most, below: bounds of the number, or of each number of a sequence.
        check: whether a value will do, where bounds cannot say it, and `must`, what it must be then.
        resume: a resumed run may change it: it does not decide what the run computes.
        evaluate: an evaluation may change it.
        start: it only says where training begins.
        run: it is the folder of another run.
        kind: bool, int, float, str or tuple.
        choices: the values of a text or a number that has but a few.
    """

    default: Any
    text: str
    source: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    check: Callable[[Any], bool] | None = None
    must: str = ""
    resume: bool = False
    evaluate: bool = False
    start: bool = False
    run: bool = False
    kind: type = object
    choices: tuple[Any, ...] = ()

    def problem(self, value: Any) -> str:
        """Says what a value of the right type must be that it is not; "" if it will do."""
        if not _finite(value):
            return "must be finite (in float32)"
        if self.choices:
            return "" if value in self.choices else f"must be one of {', '.join(map(str, self.choices))}"
        if self.check is not None:
            return "" if self.check(value) else f"must be {self.must}"
        numbers = value if isinstance(value, tuple) else (value,)
        return "" if not self.bounds or all(map(self._within, numbers)) else f"must be {self.bounds}"

    @property
    def bounds(self) -> str:
        """Says the field's bounds: "at least 0 and less than 1"; "" where there are none."""
        words = (("at least", self.at_least), ("greater than", self.above), ("at most", self.at_most))
        parts = [f"{word} {bound:g}" for word, bound in words if bound is not None]
        parts += [f"less than {self.below:.10g}"] if self.below is not None else []
        return " and ".join(parts)

    def _within(self, number: float) -> bool:
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    @property
    def values(self) -> str:
        """Says which values the field takes."""
        if self.choices:
            return " | ".join(repr(choice) if choice == "" else str(choice) for choice in self.choices)
        return ", ".join(part for part in (KINDS[self.kind], self.must or self.bounds) if part)


def field(default: Any, text: str, **known: Any) -> Any:
    """Declares a field, see `Field`; its kind and its choices follow from the annotation."""
    return Field(default, text, **known)


def table(section: type, prefix: str = "") -> dict[str, Field]:
    """Gives the declarations below a section, by name: "model.gater.bottleneck"."""
    found = {}
    for name, annotation in typing.get_type_hints(section).items():
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found |= table(annotation, f"{prefix}{name}.")
            continue
        declared: Field = getattr(section, name)
        choices = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
        kind = type(choices[0]) if choices else typing.get_origin(annotation) or annotation
        found[prefix + name] = dataclasses.replace(declared, kind=kind, choices=choices)
    return found


def make(section: type) -> Any:
    """Makes a config of the defaults; unlocked."""
    config: Any = ConfigDict()
    for name, declared in table(section).items():
        at, parts = config, name.split(".")
        for part in parts[:-1]:
            if part not in at:
                at[part] = ConfigDict()
            at = at[part]
        at[parts[-1]] = declared.default
    return config


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("model.gater.bottleneck", 8) and so on; sequences as tuples."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, (list, tuple)) else value


def misfits(config: Any, known: Mapping[str, Field]) -> list[str]:
    """Names every field of a config that is missing, unknown or of another type."""
    fields = dict(flatten(config)) if isinstance(config, ConfigDict) else {}
    problems = [f"{name} is missing" for name in known.keys() - fields.keys()]
    problems += [f"{name} is unknown" for name in fields.keys() - known.keys()]
    for name in fields.keys() & known.keys():
        if not _is_of(known[name].kind, fields[name]):
            problems.append(f"{name}={fields[name]!r} must be {KINDS[known[name].kind]}")
    return sorted(problems)


def out_of_bounds(config: Any, known: Mapping[str, Field]) -> list[str]:
    """Names every field of a config without misfits whose value cannot be."""
    problems = {name: (value, known[name].problem(value)) for name, value in flatten(config)}
    return [f"{name}={_shown(value)} {problem}" for name, (value, problem) in problems.items() if problem]


def describe(known: Mapping[str, Field]) -> str:
    """Lists fields for people: the default, what it is, where that comes from, which values it takes."""
    lines = []
    for name, declared in known.items():
        source = f" [{declared.source}]" if declared.source else ""
        text = f"{declared.text}{source} ({declared.values})"
        lines.append(f"  --config.{name}={declared.default}")
        lines += textwrap.wrap(text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _is_of(kind: type, value: Any) -> bool:
    if kind is tuple:
        return isinstance(value, tuple) and all(map(_is_number, value))
    return type(value) is kind or (kind is float and _is_number(value))  # a whole number will do


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all(abs(number) <= FLOAT32_MAX for number in numbers if isinstance(number, float))


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)
