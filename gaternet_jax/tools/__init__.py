"""Thin command lines over the package; `python -m gaternet_jax.tools.X --help` tells what each does."""
