"""Rows as a step reads them: the order of an epoch, micro-batches, padding, collating."""
