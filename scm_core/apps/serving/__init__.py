"""The HTTP server behind `python -m scm_core.serve`."""
