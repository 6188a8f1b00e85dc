"""All that an accelerator can tell, by one command: `python -m benchmarks.accelerator`."""
