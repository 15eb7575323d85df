"""Configuration: what can be set, and how files of settings are read."""
