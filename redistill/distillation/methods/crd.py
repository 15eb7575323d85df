"""CRD: contrastive representation distillation (Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.options import positive
from redistill.distillation.processes import gather
from redistill.errors import TapError

EPS = 1e-7
PUBLISHED_NEGATIVES = 16384


class CRD(DistillationMethod):
    """Noise-contrastive estimation between unit embeddings v of the pooled features and two memory banks m of N rows.

    For one positive (the image's own row of the other network's bank) and K negatives (rows of other classes):

        q      = exp(v . m / T) / Z,   Z = N mean(exp) fixed at the first batch
        loss   = - mean_b [ log q+ / (q+ + K/N) + sum_k log (K/N) / (q_k + K/N) ],   student side plus teacher side

    The rows of the batch then move half-way to the new embeddings. Needs the image's index and its one label, hence no
    MixUp or CutMix. K defaults to 16384 or half of the training set, whichever is less.
    """

    name = "crd"
    needs = frozenset({Need.POOLED, Need.HARD_LABELS, Need.INDICES})
    paper = "Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699"
    weight = 0.8

    student_bank: Tensor
    teacher_bank: Tensor
    order: Tensor
    starts: Tensor
    counts: Tensor
    normalisers: Tensor

    def __init__(
        self, *, negatives: int = 0, embedding: int = 128, temperature: float = 0.07, momentum: float = 0.5
    ) -> None:
        super().__init__()
        self.negatives = negatives
        self.embedding = int(positive(self.name, "embedding", embedding))
        self.temperature = positive(self.name, "temperature", temperature)
        self.momentum = momentum
        self.student_embedding: nn.Module = nn.Identity()
        self.teacher_embedding: nn.Module = nn.Identity()

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Create embeddings and banks, and order the training set by class for drawing negatives."""
        if training_set.labels is None:
            raise TapError("crd: draws negatives of other classes, and the training set has no labels; give them")
        self.samples = training_set.samples
        self.negatives = self.negatives or max(1, min(PUBLISHED_NEGATIVES, self.samples // 2))
        self.student_embedding = nn.Linear(student.pooled.shape[1], self.embedding)
        self.teacher_embedding = nn.Linear(teacher.pooled.shape[1], self.embedding)
        bound = (self.embedding / 3) ** -0.5
        for bank in ("student_bank", "teacher_bank"):
            self.register_buffer(bank, torch.empty(self.samples, self.embedding).uniform_(-bound, bound))
        counts = torch.bincount(training_set.labels, minlength=training_set.classes)
        self.register_buffer("order", training_set.labels.argsort(stable=True), persistent=False)
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("normalisers", torch.zeros(2))

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The contrastive losses of both sides; updates the banks."""
        if targets.labels is None or targets.indices is None:
            raise TapError("crd: contrasts single images and needs their labels and indices; set targets.mixing=none")
        ours = F.normalize(self.student_embedding(student.pooled))
        theirs = F.normalize(self.teacher_embedding(teacher.pooled))
        rows = torch.cat([targets.indices[:, None], self.draw_negatives(targets.labels)], dim=1)
        found = {
            "student": self.contrast(ours, self.teacher_bank[rows], side=0),
            "teacher": self.contrast(theirs, self.student_bank[rows], side=1),
        }
        self.remember(targets.indices, ours, theirs)
        return found

    def draw_negatives(self, labels: Tensor) -> Tensor:
        """Rows of K images of other classes for each label, uniform with replacement, [B, K]."""
        starts, counts = self.starts[labels][:, None], self.counts[labels][:, None]
        drawn = torch.rand(len(labels), self.negatives, device=labels.device, dtype=torch.float64)
        position = (drawn * (self.samples - counts)).long()
        return self.order[torch.where(position < starts, position, position + counts)]

    def contrast(self, embedding: Tensor, rows: Tensor, side: int) -> Tensor:
        """The loss of embeddings [B, D] against bank rows [B, 1 + K, D], the first of which is the positive."""
        scores = (torch.einsum("bkd,bd->bk", rows, embedding) / self.temperature).exp()
        with torch.no_grad():
            if not self.normalisers[side]:
                self.normalisers[side] = scores.mean() * self.samples
        noise = self.negatives / self.samples
        chances = scores / self.normalisers[side].clone()
        positive_part = (chances[:, 0] / (chances[:, 0] + noise + EPS)).log()
        negative_part = (noise / (chances[:, 1:] + noise + EPS)).log().sum(dim=1)
        return -(positive_part + negative_part).mean()

    @torch.no_grad()
    def remember(self, indices: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Move the batch's rows of both banks towards their new embeddings, over all processes."""
        rows = gather(indices)
        for bank, value in ((self.student_bank, gather(student)), (self.teacher_bank, gather(teacher))):
            bank[rows] = F.normalize(self.momentum * bank[rows] + (1 - self.momentum) * value)
