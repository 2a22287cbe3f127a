"""Fetching a task's files once, each checked, into a local directory."""
