"""Tests of flare_ds.scoring."""
