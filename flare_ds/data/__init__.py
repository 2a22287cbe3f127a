"""Data: parallel rows and their splits, the token cache, stored states."""
