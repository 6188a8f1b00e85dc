"""Run cards: one short file per dataset, each a difference over gaternet_jax.config.default()."""

from pathlib import Path

from gaternet_jax.errors import UserError


def card_names() -> list[str]:
    """Names the run cards of this package, e.g. "cifar10"."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def find_card(card: str) -> str:
    """Finds the file of a run card: "cifar10:resnet56" becomes ".../gaternet_jax/configs/cifar10.py:resnet56".

    What is no single word, e.g. "configs/cifar10.py:resnet56", is a file already, and returned as it is.

    Raises:
        UserError: no card has this name.
    """
    name, colon, variant = card.partition(":")
    if not name.isidentifier():
        return card
    if name not in card_names():
        raise UserError(
            f"--config={card}: no run card is called '{name}'; there are {', '.join(card_names())}. "
            "Of a card of your own, give the file: DIR/NAME.py"
        )
    return f"{Path(__file__).parent / name}.py{colon}{variant}"
