"""A new plugin's package, complete from the start."""
