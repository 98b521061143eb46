"""The modalities that come with scm_core; each folder is one plugin."""
