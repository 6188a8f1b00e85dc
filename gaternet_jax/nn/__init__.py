"""Layers, and where their parameters and random numbers come from."""
