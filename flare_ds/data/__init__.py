"""Data: fetching, parallel rows and their splits, the token cache, batches."""
