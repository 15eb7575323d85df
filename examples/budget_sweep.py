"""Sweep the budget: what each costs in multiply-accumulates, in accuracy before training, and what cannot be had."""

import digits

import redistill

images, labels, test_images, test_labels = digits.load()
teacher = digits.train(digits.network(), images, labels)
whole = redistill.profile(teacher, images[:1])
print(f"teacher: {whole.peak_bytes:,} bytes at {whole.peak_node}, {whole.macs:,} multiply-accumulates")

for budget in ("1.5x", "2x", "3x", "4x", "6x", "100x"):
    try:
        student = redistill.transform(teacher, images[:1], budget=budget)
    except redistill.InfeasibleBudgetError as error:
        print(f"{budget:>5}  {str(error)[:80]}...")
        continue
    redistill.fit(student, teacher, images[:256])
    factors = ", ".join(map(str, student.plan.factors))
    score = digits.accuracy(student, test_images, test_labels)
    peak, macs = student.plan.peak_bytes, student.plan.macs_kept
    print(f"{budget:>5}  {factors}  {peak:6,} bytes  {macs:4.0%} of the work  {score:.1f} % after a fit, untrained")
