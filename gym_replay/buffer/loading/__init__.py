"""From a snapshot of a buffer to batches of tensors: plan, order, gather, collate."""
