"""Redistill: memory-bounded students of convolutional networks and UNet denoisers."""
