"""Models, in the order that data flows: gater -> gate scores -> gates -> backbone -> logits."""
