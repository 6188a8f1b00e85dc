"""One script per claim, each printing a table against a peer in the same run."""
