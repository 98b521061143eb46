"""What a plugin provides: spec, configuration, condition fields."""
