"""Input: TFDS dataset -> batches {image uint8 [B, H, W, C], label int32 [B], mask bool [B]}."""
