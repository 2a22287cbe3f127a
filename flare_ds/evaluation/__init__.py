"""Evaluation: scoring every held-out row once, and what the scores say."""
