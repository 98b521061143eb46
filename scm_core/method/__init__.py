"""The paper: paths, losses, samplers. It imports torch and scm_core.dual alone."""
