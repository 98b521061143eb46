"""The live page behind `python -m scm_core.demo`."""
