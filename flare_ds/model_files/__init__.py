"""What a base is by its files and names alone, before anything is loaded."""
