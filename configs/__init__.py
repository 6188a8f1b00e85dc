"""Run cards: one short file per dataset, each a difference over common.py."""
