"""Teachers: where a model spec becomes a module."""
