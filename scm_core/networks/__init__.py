"""Layers and backbones that run under Dual."""
