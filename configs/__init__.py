"""Run cards: one short file per dataset, each a difference over gaternet_jax.config.default()."""
