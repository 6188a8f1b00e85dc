"""Datasets written to disk; nothing of JAX in here."""
