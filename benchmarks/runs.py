"""A run of a study: a run card, its variant, and the fields that differ from it."""

import ast
import dataclasses
import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path

from gaternet_jax.config import RunConfig, flatten
from gaternet_jax.configs import card_names, find_card
from gaternet_jax.errors import UserError

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        card: a run card, "cifar10", or its file, relative to the repository or the working directory.
        variant: of the card.
        settings: fields that differ from it, e.g. {"train.epochs": 30.0, "seed": 1}.
        label: stands for the variant in the run's name, where the settings say more.
    """

    card: str
    variant: str = ""
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        """Names the run's folder, e.g. "cifar10-resnet20-plain-he-30ep-seed0"."""
        config = self.config()
        model = self.label or self.variant
        parts = (Path(self.card).stem, model, f"{config.train.epochs:g}ep", f"seed{config.seed}")
        return "-".join(part for part in parts if part)

    def config(self) -> RunConfig:
        """Builds its config.

        Raises:
            UserError: no such card, variant or field, or a value of the wrong type.
        """
        config = load_card(self.card, self.variant)
        unknown = self.settings.keys() - {field for field, _ in flatten(config)}
        if unknown:
            raise UserError(f"--set names unknown fields: {', '.join(sorted(unknown))}; see gaternet train --help")
        try:
            config.update_from_flattened_dict(dict(self.settings))
        except (TypeError, ValueError) as error:
            raise UserError(f"--set has a value of the wrong type: {error}") from None
        return config

    @property
    def command(self) -> str:
        """The command line that trains this run alone."""
        card = f"{self.card}:{self.variant}" if self.variant else self.card
        fields = "".join(f" --config.{field}={shlex.quote(str(value))}" for field, value in self.settings.items())
        return f"python -m gaternet_jax.main --config={card}{fields}"


def load_card(path: str, variant: str) -> RunConfig:
    """Loads the config of a run card's variant.

    Raises:
        UserError: no such card or variant.
    """
    found = Path(find_card(path))
    file = found if found.is_file() else ROOT / found
    spec = importlib.util.spec_from_file_location("card", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise UserError(f"--config={path} is no run card; give one of {', '.join(card_names())}, or a file")
    card = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(card)
    return card.get_config(variant)


def parse_settings(settings: list[str]) -> dict[str, object]:
    """Parses ["train.epochs=100"] into {"train.epochs": 100}; what is no Python literal is text."""
    parsed = {}
    for setting in settings:
        field, _, value = setting.partition("=")
        try:
            parsed[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[field] = value
    return parsed
