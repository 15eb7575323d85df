"""Each method against an independent computation of its formula, in numpy with plain loops."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from example_outputs import (
    BATCH,
    SAMPLES,
    hard_targets,
    soft_targets,
    student_outputs,
    teacher_outputs,
    training_set,
)

from redistill.distillation import Targets, create
from redistill.errors import TapError

STAGES = ("layer1", "layer2", "layer3")


def arrays(maps):
    return {name: value.detach().numpy().astype(np.float64) for name, value in maps.items()}


def build(name, **options):
    torch.manual_seed(0)
    method, _ = create(name, options)
    method.build(student_outputs(), teacher_outputs(), training_set())
    return method


def loss(method, targets=None, phase="forward"):
    given = student_outputs(), teacher_outputs(), targets or hard_targets()
    if phase == "initialise":
        return sum(value.item() for value in method.initialise(*given).values())
    return method(*given).item()


def pool(value, side):
    """Average pooling of [B, C, H, H] to a side that may not divide H, cell by cell."""
    size = value.shape[-1]
    out = np.zeros((*value.shape[:2], side, side))
    for i in range(side):
        for j in range(side):
            rows = slice(math.floor(i * size / side), math.ceil((i + 1) * size / side))
            columns = slice(math.floor(j * size / side), math.ceil((j + 1) * size / side))
            out[:, :, i, j] = value[:, :, rows, columns].mean(axis=(2, 3))
    return out


def unit(vector):
    return vector / np.linalg.norm(vector)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def logits():
    return student_outputs().logits.detach().numpy().astype(float), teacher_outputs().logits.detach().numpy().astype(
        float
    )


def pooled():
    return (given.pooled.detach().numpy().astype(float) for given in (student_outputs(), teacher_outputs()))


def sized(which="stages"):
    """Student and teacher maps of each stage, the larger pooled to the smaller."""
    ours, theirs = arrays(getattr(student_outputs(), which)), arrays(getattr(teacher_outputs(), which))
    return [(ours[name], pool(theirs[name], ours[name].shape[-1])) for name in STAGES]


def close(value, expected):
    assert value == pytest.approx(expected, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_red(distance):
    ours, theirs = arrays(student_outputs().taps), arrays(teacher_outputs().taps)
    expected = 0.0
    for name in ours:
        s, t = ours[name].mean(axis=1), theirs[name].mean(axis=1)
        if distance == "mse":
            expected += ((s - t) ** 2).mean() / 2
        else:
            cosines = [unit(s[b].ravel()) @ unit(t[b].ravel()) for b in range(BATCH)]
            expected += (1 - np.mean(cosines)) / 2
    close(loss(build("red", distance=distance)), expected)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_stage(distance):
    ours, theirs = arrays(student_outputs().stages), arrays(teacher_outputs().stages)
    expected = 0.0
    for name in STAGES:
        s, t = ours[name].mean(axis=(2, 3)), theirs[name].mean(axis=(2, 3))
        if distance == "mse":
            expected += ((s - t) ** 2).mean() / 3
        else:
            expected += np.mean([1 - unit(s[b]) @ unit(t[b]) for b in range(BATCH)]) / 3
    close(loss(build("stage", distance=distance)), expected)


def test_kd():
    s, t = logits()
    expected = 0.0
    for b in range(BATCH):
        p, q = softmax(t[b] / 3.0), softmax(s[b] / 3.0)
        expected += 9.0 * sum(p[k] * math.log(p[k] / q[k]) for k in range(len(p))) / BATCH
    close(loss(build("kd", temperature=3.0)), expected)


def test_mse():
    s, t = logits()
    close(loss(build("mse")), ((s - t) ** 2).mean())


def test_reentry():
    s, t = (given.reentry.detach().numpy() for given in (student_outputs(), teacher_outputs()))
    close(loss(build("reentry")), ((s - t) ** 2).mean() / (t**2).mean())


def test_maps():
    expected = [((s - t) ** 2).mean() / (t**2).mean() for s, t in sized()]
    close(loss(build("maps")), sum(expected) / len(STAGES))


def test_fitnet_regresses_the_middle_stage():
    method = build("fitnet").eval()
    (s, t) = sized()[1]
    convolution, norm = method.regressors["layer2"]
    weight, bias = convolution.weight.detach().numpy()[:, :, 0, 0], convolution.bias.detach().numpy()
    regressed = np.einsum("oc,bchw->bohw", weight, s) + bias[None, :, None, None]
    close(loss(method), ((regressed / math.sqrt(1 + norm.eps) - t) ** 2).mean())


@pytest.mark.parametrize("power", [1, 2, 3])
def test_at_squares_before_pooling(power):
    ours, theirs = arrays(student_outputs().stages), arrays(teacher_outputs().stages)
    expected = 0.0
    for name in STAGES:
        s = (abs(ours[name]) ** power).mean(axis=1, keepdims=True)
        t = pool((abs(theirs[name]) ** power).mean(axis=1, keepdims=True), s.shape[-1])
        expected += np.mean([(unit(s[b].ravel()) - unit(t[b].ravel())) ** 2 for b in range(BATCH)])
    close(loss(build("at", power=power)), expected)


def test_sp():
    ours, theirs = arrays(student_outputs().stages)["layer3"], arrays(teacher_outputs().stages)["layer3"]
    grams = []
    for value in (ours, theirs):
        gram = np.array([[value[i].ravel() @ value[j].ravel() for j in range(BATCH)] for i in range(BATCH)])
        grams.append(np.array([unit(row) for row in gram]))
    close(loss(build("sp")), ((grams[0] - grams[1]) ** 2).sum() / BATCH**2)


def test_cc_is_near_the_gaussian_kernel():
    def kernel(features):
        rows = [unit(row) for row in features]
        return np.array([[math.exp(-0.4 * ((a - b) ** 2).sum()) for a in rows] for b in rows])

    s, t = pooled()
    close(loss(build("cc", order=12)), ((kernel(s) - kernel(t)) ** 2).mean())


def test_cc_second_order():
    def kernel(features):
        rows = [unit(row) for row in features]
        cosine = np.array([[a @ b for a in rows] for b in rows])
        return math.exp(-0.8) * (1 + 0.8 * cosine + 0.32 * cosine**2)

    s, t = pooled()
    close(loss(build("cc")), ((kernel(s) - kernel(t)) ** 2).mean())


def test_cc_as_in_repdistiller():
    method = build("cc", variant="repdistiller", embedding=4)
    s, t = pooled()
    embed = [
        f @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        for f, layer in ((s, method.student_embedding), (t, method.teacher_embedding))
    ]
    difference = abs(embed[0] - embed[1])
    close(loss(method), np.mean([difference[i] @ difference[i + 1] for i in range(BATCH - 1)]))


def test_vid():
    method = build("vid", variance=2.0)
    expected = 0.0
    for name, (s, t) in zip(STAGES, sized(), strict=True):
        mean = s
        for layer in method.means[name]:
            if isinstance(layer, torch.nn.Conv2d):
                mean = np.einsum("oc,bchw->bohw", layer.weight.detach().numpy()[:, :, 0, 0], mean)
            else:
                mean = np.maximum(mean, 0)
        expected += 0.5 * ((mean - t) ** 2 / 2.0 + math.log(2.0)).mean()
    close(loss(method), expected)


def smooth_l1(difference):
    absolute = abs(difference)
    return np.where(absolute < 1, 0.5 * absolute**2, absolute - 0.5)


def test_rkd():
    def relations(features):
        d = np.array([[np.linalg.norm(a - b) for b in features] for a in features])
        a = np.zeros((BATCH,) * 3)
        for j in range(BATCH):
            for i in range(BATCH):
                for k in range(BATCH):
                    if i != j and k != j:
                        a[j, i, k] = unit(features[i] - features[j]) @ unit(features[k] - features[j])
        return d / d[d > 0].mean(), a

    (d_s, a_s), (d_t, a_t) = (relations(features) for features in pooled())
    expected = 25 * smooth_l1(d_s - d_t).mean() + 50 * smooth_l1(a_s - a_t).mean()
    close(loss(build("rkd")), expected)


def test_pkt():
    def affinity(features):
        raw = np.array([[(1 + unit(a) @ unit(b)) / 2 for b in features] for a in features])
        return raw / raw.sum(axis=1, keepdims=True)

    s, t = (affinity(features) for features in pooled())
    close(loss(build("pkt")), (t * np.log((t + 1e-7) / (s + 1e-7))).mean())


def test_nst():
    expected = 0.0
    for s, t in sized():
        for b in range(BATCH):
            rows_s, rows_t = ([unit(c.ravel()) for c in value[b]] for value in (s, t))
            for sign, first, second in ((1, rows_s, rows_s), (1, rows_t, rows_t), (-2, rows_s, rows_t)):
                expected += sign * np.mean([(x @ y) ** 2 for x in first for y in second]) / BATCH
    close(loss(build("nst")), expected)


@pytest.mark.parametrize("size", [2, 40])
def test_nst_kernel_by_channels_or_by_grid(size):
    from redistill.distillation.methods.nst import kernel_mean

    a, b = torch.randn(3, 7, size), torch.randn(3, 5, size)
    expected = np.mean([(x @ y).item() ** 2 for n in range(3) for x in a[n] for y in b[n]])
    close(kernel_mean(a, b).item(), expected)


def test_ab_first_stage():
    s_maps, t_maps = arrays(student_outputs().preactivations), arrays(teacher_outputs().preactivations)
    expected = 0.0
    for level, name in enumerate(STAGES):
        c, t = s_maps[name], pool(t_maps[name], s_maps[name].shape[-1])
        rule = np.where(t > 0, np.where(c <= 1, (c - 1) ** 2, 0), np.where(c > -1, (c + 1) ** 2, 0))
        elements = t_maps[name].shape[-1] ** 2 / c.shape[-1] ** 2
        expected += 2.0 ** (level - 2) * 3 / 1000 * elements * rule.sum() / BATCH
    method = build("ab")
    close(loss(method, phase="initialise"), expected)
    assert loss(method) == 0


def test_ft_both_stages():
    method = build("ft")
    t = teacher_outputs().stages["layer3"].detach()
    encoded = method.encoder(t)
    reconstructed = method.decoder(encoded).detach().numpy()
    close(loss(method, phase="initialise"), ((reconstructed - t.numpy()) ** 2).mean())
    method.eval()
    ours = method.translator(student_outputs().stages["layer3"]).detach().numpy()
    theirs = pool(encoded.detach().numpy(), ours.shape[-1])
    differences = [abs(unit(ours[b].ravel()) - unit(theirs[b].ravel())) for b in range(BATCH)]
    close(loss(method), np.mean(differences))


def test_ft_as_in_repdistiller():
    method = build("ft", variant="repdistiller").eval()
    t = method.encoder(teacher_outputs().stages["layer3"]).detach().numpy()
    ours = method.translator(student_outputs().stages["layer3"]).detach().numpy()
    theirs = pool(t, ours.shape[-1])
    factors = [[unit((f[b] ** 2).mean(axis=0).ravel()) for b in range(BATCH)] for f in (ours, theirs)]
    close(loss(method), abs(np.array(factors[0]) - np.array(factors[1])).mean())


def test_fsp_first_stage():
    expected = 0.0
    maps = [arrays(given.stages) for given in (student_outputs(), teacher_outputs())]
    for first, second in (("layer1", "layer2"), ("layer2", "layer3")):
        flows = []
        for stages in maps:
            a, b = pool(stages[first], stages[second].shape[-1]), stages[second]
            flow = np.zeros((BATCH, a.shape[1], b.shape[1]))
            for n in range(BATCH):
                for i in range(a.shape[1]):
                    for j in range(b.shape[1]):
                        flow[n, i, j] = (a[n, i] * b[n, j]).mean()
            flows.append(flow)
        expected += ((flows[0] - flows[1]) ** 2).mean()
    close(loss(build("fsp"), phase="initialise"), expected)


def test_crd_against_a_loop_over_its_own_negatives():
    method = build("crd", embedding=4, negatives=7)
    banks = [bank.numpy().copy() for bank in (method.student_bank, method.teacher_bank)]
    targets = hard_targets()
    s, t = pooled()
    v_s, v_t = (
        np.array([unit(layer.weight.detach().numpy() @ row + layer.bias.detach().numpy()) for row in f])
        for f, layer in ((s, method.student_embedding), (t, method.teacher_embedding))
    )
    torch.manual_seed(5)
    negatives = method.draw_negatives(targets.labels).numpy()
    rows = [[int(i), *negatives[b]] for b, i in enumerate(targets.indices)]
    noise, expected = 7 / SAMPLES, 0.0
    for v, bank in ((v_s, banks[1]), (v_t, banks[0])):
        scores = np.array([[math.exp(v[b] @ bank[row] / 0.07) for row in rows[b]] for b in range(BATCH)])
        q = scores / (scores.mean() * SAMPLES)
        for b in range(BATCH):
            expected -= math.log(q[b, 0] / (q[b, 0] + noise)) / BATCH
            expected -= sum(math.log(noise / (q[b, k] + noise)) for k in range(1, 8)) / BATCH
    torch.manual_seed(5)
    close(loss(method, targets), expected)
    for b, i in enumerate(targets.indices):
        moved = unit(0.5 * banks[0][i] + 0.5 * v_s[b])
        np.testing.assert_allclose(method.student_bank[i].numpy(), moved, atol=1e-5)


def test_crd_draws_all_other_classes_evenly():
    method = build("crd", negatives=4000)
    labels = torch.tensor([0, 4])
    for label, drawn in zip(labels, method.draw_negatives(labels), strict=True):
        counts = torch.bincount(drawn, minlength=SAMPLES)
        other = torch.arange(SAMPLES) % 5 != label
        assert counts[~other].sum() == 0
        assert counts[other].min() > 0.6 * 4000 / other.sum()


def test_kdsvd():
    method = build("kdsvd")

    def vectors(value, count):
        matrix = value.reshape(value.shape[0], -1).T
        return np.linalg.svd(matrix, full_matrices=False)[2][:count]

    ours, theirs = arrays(student_outputs().stages), arrays(teacher_outputs().stages)
    expected = 0.0
    for b in range(BATCH):
        chain = []
        for name in STAGES:
            t = vectors(theirs[name][b], 1)[0]
            t = t if t.sum() >= 0 else -t
            candidates = vectors(ours[name][b], 4)
            cosines = [t @ candidate for candidate in candidates]
            best = int(np.argmax(np.abs(cosines)))
            chain.append((candidates[best] * np.sign(cosines[best]), t))
        for (s_above, t_above), (s, t) in pairwise(chain):
            for i in range(len(s)):
                for j in range(len(s_above)):
                    kernel_s = math.exp(-((s[i] - s_above[j]) ** 2) / 8)
                    kernel_t = math.exp(-((t[i] - t_above[j]) ** 2) / 8)
                    expected += (kernel_s - kernel_t) ** 2 / BATCH
    close(loss(method), expected)


def test_ofd():
    method = build("ofd").eval()
    raw = arrays(teacher_outputs().preactivations)
    expected = 0.0
    for level, (name, (s, t)) in enumerate(zip(STAGES, sized("preactivations"), strict=True)):
        convolution, norm = method.connectors[name]
        c = np.einsum("oc,bchw->bohw", convolution.weight.detach().numpy()[:, :, 0, 0], s) / math.sqrt(1 + norm.eps)
        part = 0.0
        for channel in range(t.shape[1]):
            mean, deviation = raw[name][:, channel].mean(), raw[name][:, channel].std()
            density = math.exp(-((mean / deviation) ** 2) / 2) / math.sqrt(2 * math.pi)
            margin = mean - deviation * density / (0.5 * math.erfc(mean / deviation / math.sqrt(2)))
            for x, y in zip(c[:, channel].ravel(), t[:, channel].ravel(), strict=True):
                if y > 0 or (margin < y <= 0 and x > y):
                    part += (x - y) ** 2
                elif y <= margin and x > margin:
                    part += (x - margin) ** 2
        elements = raw[name].shape[-1] ** 2 / s.shape[-1] ** 2
        expected += 2.0 ** (level - 2) * elements * part / BATCH
    close(loss(method), expected)


def test_ofd_margin_is_the_mean_of_a_gaussian_below_zero():
    from redistill.distillation.methods.ofd import negative_mean

    drawn = np.random.default_rng(0).normal(0.4, 1.3, 2_000_000)
    margins = negative_mean(torch.tensor([0.4, 50.0]), torch.tensor([1.3, 2.0]))
    assert margins[0].item() == pytest.approx(drawn[drawn < 0].mean(), rel=5e-3)
    assert margins[1].item() == pytest.approx(-6.0)


def test_reviewkd_chain_and_pyramid():
    method = build("reviewkd", width=4).eval()
    student, teacher = student_outputs(), teacher_outputs()
    chain = [("pooled", student.pooled[:, :, None, None], teacher.pooled[:, :, None, None])]
    chain += [(n, student.preactivations[n], teacher.preactivations[n]) for n in reversed(STAGES)]
    expected, residual = 0.0, None
    for name, ours, theirs in chain:
        fusion = method.fusions[name]
        fused = fusion.reduce(ours)
        if residual is not None:
            scale = fused.shape[-1] // residual.shape[-1]
            deeper = residual.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
            gates = 1 / (1 + torch.exp(-fusion.attention(torch.cat([fused, deeper], 1))))
            fused = gates[:, 0:1] * fused + gates[:, 1:2] * deeper
        residual = fused
        s = fusion.expand(fused).detach().numpy()
        t = pool(theirs.detach().numpy(), s.shape[-1])
        levels = [side for side in (4, 2, 1) if side < s.shape[-1]]
        terms = [((s - t) ** 2).mean()] + [((pool(s, side) - pool(t, side)) ** 2).mean() for side in levels]
        weights = [0.5**i for i in range(len(terms))]
        expected += np.dot(weights, terms) / sum(weights)
        if name == "layer2":
            break
    found = method.losses(student, teacher, hard_targets())
    close(sum(found[name].item() for name in ("pooled", "layer3", "layer2")), expected)


def dkd_of(s, t, y, alpha=1.0, beta=8.0, temperature=4.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    target = p[y] * math.log(p[y] / q[y]) + (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
    rest_p, rest_q = (softmax(np.delete(z / temperature, y)) for z in (t, s))
    rest = sum(a * math.log(a / b) for a, b in zip(rest_p, rest_q, strict=True))
    return temperature**2 * (alpha * target + beta * rest)


def test_dkd():
    s, t = logits()
    labels = hard_targets().labels
    close(loss(build("dkd")), np.mean([dkd_of(s[b], t[b], int(labels[b])) for b in range(BATCH)]))


def test_dkd_of_blended_images_is_the_mean_over_their_targets():
    s, t = logits()
    soft = soft_targets().soft.numpy()
    expected = np.mean([sum(soft[b, y] * dkd_of(s[b], t[b], y) for y in np.nonzero(soft[b])[0]) for b in range(BATCH)])
    close(loss(build("dkd"), soft_targets()), expected)


def test_mlld_as_released():
    s, t = logits()
    temperatures, expected = (4.0, 2.0, 3.0, 5.0, 6.0), 0.0
    weak, strong = slice(0, 3), slice(3, 6)

    def divergence(rows, temperature):
        p, q = softmax(t[rows] / temperature), softmax(s[rows] / temperature)
        return temperature**2 * (p * np.log(p / q)).sum() / 3

    for temperature in temperatures:
        p, q = softmax(t[weak] / temperature), softmax(s[weak] / temperature)
        expected += 0.5 * divergence(weak, temperature)
        expected += divergence(strong if temperature in (4.0, 3.0, 5.0) else weak, temperature)
        expected += 0.5 * ((q @ q.T - p @ p.T) ** 2).sum() / 3
        expected += 0.5 * ((q.T @ q - p.T @ p) ** 2).sum() / p.shape[1]
    close(loss(build("mlld", variant="released"), Targets(views=2)), expected)
    with pytest.raises(TapError, match=r"data\.strong"):
        loss(build("mlld", variant="released"))


@pytest.mark.parametrize("masked", [True, False])
def test_mlld(masked):
    s, t = logits()
    confidence, mass = softmax(t).max(axis=1), softmax(t).sum(axis=0)
    lower = lambda values: values <= (np.sort(values)[(len(values) - 1) // 2] if masked else np.inf)  # noqa: E731
    images, classes = np.flatnonzero(lower(confidence)), np.flatnonzero(lower(mass))
    expected = 0.0
    for temperature in (4.0, 2.0):
        p, q = softmax(t / temperature), softmax(s / temperature)
        for b in images:
            expected += temperature**2 * (p[b] * np.log(p[b] / q[b])).sum() / len(images)
        for i in images:
            for j in images:
                expected += (q[i] @ q[j] - p[i] @ p[j]) ** 2 / len(images)
        for i in classes:
            for j in classes:
                expected += (q[:, i] @ q[:, j] - p[:, i] @ p[:, j]) ** 2 / len(classes)
    close(loss(build("mlld", temperatures=(4.0, 2.0), masked=masked)), expected)
