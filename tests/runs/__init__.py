"""Tests of flare_ds.runs."""
