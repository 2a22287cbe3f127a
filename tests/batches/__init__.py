"""Tests of flare_ds.batches."""
