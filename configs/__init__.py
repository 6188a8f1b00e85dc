"""The run cards of gaternet_jax/configs/, by file in a checkout."""
