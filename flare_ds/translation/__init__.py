"""Machine translation of one side of a data set, once, kept by content."""
