"""Models and data sets that are shared."""
