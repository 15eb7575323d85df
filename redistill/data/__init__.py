"""Data: images from folders and data sets, their order and their augmentation."""
