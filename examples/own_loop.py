"""Distil in a training loop of one's own."""

import digits
import torch
from torch.nn import functional as F

import redistill

images, labels, test_images, test_labels = digits.load()
teacher = digits.train(digits.network(), images, labels)
student = redistill.transform(teacher, images[:1], budget="4x")
print(f"teacher {digits.accuracy(teacher, test_images, test_labels):.1f} %")
print(f"student before training {digits.accuracy(student, test_images, test_labels):.1f} %, {student.plan.factors}")

distil = redistill.Distiller(student, teacher, "kd+reentry", example=images[:32])
optimizer = torch.optim.AdamW(distil.parameters(), lr=3e-3)
for epoch in range(4):
    distil.train()
    for batch in torch.randperm(len(images)).split(64):
        logits, losses = distil(images[batch], labels=labels[batch], epoch=epoch)
        (F.cross_entropy(logits, labels[batch]) + sum(losses.values())).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch}: {digits.accuracy(student, test_images, test_labels):.1f} %")

student.save("student")
again = redistill.load_student("student", teacher=digits.network())
assert torch.equal(again.eval()(test_images), student.eval()(test_images))
