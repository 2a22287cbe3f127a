"""How sizes and ages are said to a reader."""


def human_size(bytes_: float) -> str:
    """Bytes for a reader, e.g. `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if bytes_ < 999.5:
            return f"{bytes_:.3g} {unit}"
        bytes_ /= 1000
    return f"{bytes_:.3g} TB"


def human_age(seconds: float) -> str:
    """An age for a reader, e.g. `3 days`."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"
