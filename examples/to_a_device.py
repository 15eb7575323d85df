"""Bring a student to a device: float and int8 files, each run in its own runtime and compared before it is written.

Needs the extra: pip install redistill[export]
"""

import digits

import redistill
from redistill.export import export, make_int8, prepare

images, labels, test_images, test_labels = digits.load()
teacher = digits.train(digits.network(), images, labels)
student = redistill.transform(teacher, images[:1], budget="4x")
redistill.fit(student, teacher, images[:256])

example = (images[:1],)
for name, network in (("teacher", teacher), ("student", student)):
    written = export(prepare(network, example), f"{name}.pte", "executorch-portable", force=True)
    print(f"{written.path}: {written.size:,} bytes, arena {written.account.planned:,} bytes ({written.account})")

held_out = [test_images[i : i + 1] for i in range(32)]
written = export(make_int8(prepare(student, example), held_out), "student_int8.pte", "executorch", force=True)
print(f"{written.path}: {written.size:,} bytes, int8 differs from float by {written.quantization_error:.1%}")
