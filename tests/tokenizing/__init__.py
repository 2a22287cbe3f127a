"""Tests of flare_ds.tokenizing."""
