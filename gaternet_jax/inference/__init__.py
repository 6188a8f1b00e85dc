"""Gates that save time: compaction, specialists, per-image execution, and a Predictor over all of them."""
