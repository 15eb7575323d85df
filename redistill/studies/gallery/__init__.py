"""A gallery of students beside their teachers: memory against accuracy, and footprints over the layers."""

from redistill.studies.gallery.accuracies import Accuracy, read_accuracies
from redistill.studies.gallery.entries import Entry, collect, read_entry
from redistill.studies.gallery.page import write_gallery
from redistill.studies.gallery.picture import draw_gallery

__all__ = ["Accuracy", "Entry", "collect", "draw_gallery", "read_accuracies", "read_entry", "write_gallery"]
