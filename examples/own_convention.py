"""Count memory by a convention of one's own.

From the command line: PYTHONPATH=examples redistill transform --convention own_convention:CAMERA
"""

import digits

import redistill

CAMERA = redistill.Convention(
    "camera",
    "as deploy, but the camera's frame buffer, which is the input, is held for the whole run",
    overwrites=True,
    pins_input=True,
)

if __name__ == "__main__":
    images, labels, *_ = digits.load()
    teacher = digits.network()
    for convention in ("deploy", CAMERA, "arena", "eager"):
        found = redistill.profile(teacher, images[:1], convention)
        print(f"{found.convention!s:>7}: {found.peak_bytes:6,} bytes, at {found.peak_node}")
    student = redistill.transform(teacher, images[:1], budget="3x", convention=CAMERA)
    print(student.plan)
