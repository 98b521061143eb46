"""The paper: path, samplers, EMA, objectives. It imports torch and scm_core.dual alone."""
