"""Tests of flare_ds.fetch."""
