"""Export: a teacher or student as a file that runs elsewhere, and the proof of the memory that it needs.

    prepared = prepare(student, inputs)
    exported = export(prepared, "student.pte", "executorch-portable")
    print(exported.account)  # the planned arena beside the predicted one

preparation  what is exported: captured, batch norms folded, in the order of least memory if so wished
formats      the kinds of file; executorch, onnx, pt2 and tflite build and run them
executorch   lowering to its dialect, planning of its arena, accounting for each byte of it
tflite       the same for microcontrollers, whose interpreter tells its arena; its files are read and changed
             (tflite_file), rid of needless copies (tflite_passes) and given offsets (tflite_layout)
parity       a file is run and compared with its network before it is written
calibration  images for int8; metadata is what a file says of itself
"""

from redistill.errors import ExportError, MissingExtraError
from redistill.export.exporting import Exported, export
from redistill.export.formats import FORMATS
from redistill.export.preparation import PreparedModel, make_int8, prepare

__all__ = ["FORMATS", "ExportError", "Exported", "MissingExtraError", "PreparedModel", "export", "make_int8", "prepare"]
