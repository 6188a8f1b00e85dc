"""The networks. Importing this imports every family, which registers itself (registry.py)."""

from gaternet_jax.models import densenet, inception, preact, resnet, shake_shake

__all__ = ["densenet", "inception", "preact", "resnet", "shake_shake"]
