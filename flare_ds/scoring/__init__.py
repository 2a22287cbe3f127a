"""Scores from answers, their intervals and the files they lie in; no model is needed."""
