"""Tests of flare_ds.runtime."""
