"""flare_ds: distributed cross-lingual transfer with fused low-rank adapters (FLARE, ACL 2025)."""

__version__ = "0.2.0"
