"""Transform: teacher to student, the pipeline and (``python -m redistill.transform``) its command line."""

from redistill.transform.pipeline import load_student, transform

__all__ = ["load_student", "transform"]
