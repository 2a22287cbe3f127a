"""Tests of flare_ds.model_files."""
