"""Feature methods against their formulas, written out here in numpy and float64 loops, to 1e-9."""

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from composed import METHODS, ON_FEATURES, loss_node
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from kd.losses import (
    ab_loss,
    at_loss,
    byot_loss,
    cat_kd_loss,
    cc_loss,
    cosine_features_loss,
    crd_loss,
    dcd_loss,
    deit_token_loss,
    diffkd_loss,
    embedding_loss,
    fitnet_loss,
    fsp_loss,
    ft_loss,
    ickd_loss,
    kdsvd_loss,
    ldrld_loss,
    mgd_loss,
    nst_loss,
    ofd_loss,
    pkt_loss,
    queue_loss,
    reviewkd_loss,
    rkd_loss,
    rrd_loss,
    sdd_loss,
    semckd_loss,
    simkd_loss,
    sp_loss,
    srrl_loss,
    vid_loss,
    wkd_f_loss,
    wkd_l_loss,
)
from kd.losses._maps import as_map, same_size
from kd.losses.byot import BYOT
from kd.losses.crd import CRD
from kd.losses.diffkd import TIMES, Denoiser, DiffKD, signal_shares
from kd.losses.embedding import Embedding
from kd.losses.ft import FT
from kd.losses.kdsvd import _directions
from kd.losses.mgd import MGD
from kd.losses.ofd import OFD
from kd.losses.queue import Queue
from kd.losses.reviewkd import ReviewKD
from kd.losses.rrd import RRD
from kd.losses.semckd import SemCKD
from kd.losses.vid import VID
from kd.shape import Shape
from kd.training.loss_spec import FEATURES, read_loss
from kd.training.objective import Objective

Array = NDArray[np.float64]
B = 5
rng = np.random.default_rng(0)
MAPS_S = [rng.normal(0, 1, (B, 3, 6, 6)), rng.normal(0, 2, (B, 4, 3, 3))]
MAPS_T = [rng.normal(0, 1, (B, 3, 6, 6)), rng.normal(0, 3, (B, 4, 3, 3))]
EMB_S, EMB_T = rng.normal(0, 1, (B, 6)), rng.normal(0, 2, (B, 6))
EMB_WIDE = rng.normal(0, 2, (B, 9))


def t(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def maps(arrays: list[Array]) -> list[Tensor]:
    return [t(a) for a in arrays]


def norm(v: Any) -> float:
    return math.sqrt(sum(float(x) ** 2 for x in np.asarray(v).ravel()))


def unit(v: Array) -> Array:
    return v / norm(v)


def softmax(z: Array) -> Array:
    shares: Array = np.exp(z) / np.exp(z).sum()
    return shares


def cosine(a: Array, b: Array) -> float:
    return float(np.dot(a, b)) / norm(a) / norm(b)


def huber(a: float, b: float) -> float:
    d = abs(a - b)
    return 0.5 * d * d if d < 1 else d - 0.5


def at(form: str) -> float:
    total = 0.0
    for s, u in zip(MAPS_S, MAPS_T, strict=True):
        parts = []
        for b in range(B):
            q_s, q_t = (unit((m[b] ** 2).mean(0)) for m in (s, u))
            parts.append(norm(q_s - q_t) if form == "paper" else float(((q_s - q_t) ** 2).mean()))
        total += sum(parts) / B
    return total


def sp() -> float:
    grams = []
    for m in (MAPS_S[1], MAPS_T[1]):
        g = [[float((m[i] * m[j]).sum()) for j in range(B)] for i in range(B)]
        grams.append([[v / norm(row) for v in row] for row in g])
    return sum((grams[0][i][j] - grams[1][i][j]) ** 2 for i in range(B) for j in range(B)) / B**2


def cc(gamma: float, order: int, teacher: Array) -> float:
    def kernel(x: Array, y: Array) -> float:
        c = cosine(x, y)
        return math.exp(-2 * gamma) * sum(
            (2 * gamma * c) ** p / math.factorial(p) for p in range(order + 1)
        )

    pairs = list(product(range(B), repeat=2))
    return (
        sum((kernel(EMB_S[i], EMB_S[j]) - kernel(teacher[i], teacher[j])) ** 2 for i, j in pairs)
        / B**2
    )


def rkd_distance() -> float:
    tables = []
    for e in (EMB_S, EMB_WIDE):
        d = {(i, j): norm(e[i] - e[j]) for i, j in product(range(B), repeat=2)}
        mean = sum(d.values()) / (B * B - B)
        tables.append({k: v / mean for k, v in d.items()})
    return sum(huber(tables[0][k], tables[1][k]) for k in tables[0]) / B**2


def rkd_angle() -> float:
    total = 0.0
    for i, j, k in product(range(B), repeat=3):
        if i in (j, k):
            continue  # no direction: both are 0
        a, b = (cosine(e[j] - e[i], e[k] - e[i]) for e in (EMB_S, EMB_WIDE))
        total += huber(a, b)
    return total / B**3


def pkt(epsilon: float) -> float:
    def shares(e: Array, i: int) -> list[float]:
        k = [(cosine(e[i], e[j]) + 1) / 2 for j in range(B)]
        return [v / sum(k) for v in k]

    total = 0.0
    for i in range(B):
        for p, q in zip(shares(EMB_WIDE, i), shares(EMB_S, i), strict=True):
            total += p * math.log((p + epsilon) / (q + epsilon))
    return total / B**2


def vid(variances: list[Array]) -> float:
    total = 0.0
    for s, u, v in zip(MAPS_S, MAPS_T, variances, strict=True):
        terms = [
            0.5 * ((s[i] - u[i]) ** 2 / v[i[1]] + math.log(v[i[1]])) for i in np.ndindex(*s.shape)
        ]
        total += sum(terms) / s.size
    return total


def nst() -> float:
    total = 0.0
    for s, u in zip(MAPS_S, MAPS_T, strict=True):
        for b in range(B):
            a, c = ([unit(channel.ravel()) for channel in m[b]] for m in (s, u))

            def mean(xs: list[Array], ys: list[Array]) -> float:
                return sum(float(np.dot(x, y)) ** 2 for x in xs for y in ys) / len(xs) / len(ys)

            total += (mean(c, c) + mean(a, a) - 2 * mean(a, c)) / B
    return total


def ft() -> float:
    total = sum(float(abs(unit(MAPS_S[1][b]) - unit(MAPS_T[1][b])).sum()) for b in range(B))
    return total / MAPS_S[1].size


def ab(margin: float) -> float:
    total = 0.0
    for weight, s, u in zip((0.5, 1.0), MAPS_S, MAPS_T, strict=True):
        for i in np.ndindex(*s.shape):
            if u[i] > 0 and s[i] <= margin:
                total += weight * (s[i] - margin) ** 2 / B
            elif u[i] <= 0 and s[i] > -margin:
                total += weight * (s[i] + margin) ** 2 / B
    return float(total)


def pooled(m: Array, size: int) -> Array:
    step = m.shape[-1] // size
    return m.reshape(*m.shape[:-2], size, step, size, step).mean((-3, -1))


def fsp() -> float:
    def flow(m: list[Array], b: int) -> Array:
        one, two = pooled(m[0][b], 3), m[1][b]
        return np.array([[(one[i] * two[j]).sum() / 9 for j in range(4)] for i in range(3)])

    return sum(float(((flow(MAPS_S, b) - flow(MAPS_T, b)) ** 2).mean()) for b in range(B)) / B


def ofd(margins: list[Array]) -> float:
    total = 0.0
    for weight, s, u, m in zip((0.5, 1.0), MAPS_S, MAPS_T, margins, strict=True):
        for i in np.ndindex(*s.shape):
            target = max(u[i], m[i[1]])
            if not s[i] <= target <= 0:
                total += weight * (target - s[i]) ** 2 / B
    return float(total)


def review() -> float:
    total = 0.0
    for s, u in zip(MAPS_S, MAPS_T, strict=True):
        height = s.shape[2]
        found, weights = [((s - u) ** 2).mean()], [1.0]
        for level in (size for size in (4, 2, 1) if size < height):
            d = torch.nn.functional.adaptive_avg_pool2d(
                t(s - u), level
            ).numpy()  # its cells overlap where uneven
            found.append((d**2).mean())
            weights.append(weights[-1] / 2)
        total += float(np.dot(found, weights)) / sum(weights)
    return total


def svd(rank: int) -> float:
    total = 0.0
    for b in range(B):
        before: Any = None
        for s, u in zip(MAPS_S, MAPS_T, strict=True):
            a, c = (m[b].reshape(m.shape[1], -1).T for m in (s, u))
            _, sizes, rows = np.linalg.svd(c)
            theirs = rows[:rank].T
            ours_all = np.linalg.svd(a)[2][: rank + 3].T
            ours = np.zeros_like(theirs)
            for k in range(rank):
                likeness = [
                    float(np.dot(ours_all[:, j], theirs[:, k])) for j in range(ours_all.shape[1])
                ]
                j = int(np.argmax(np.abs(likeness)))
                ours[:, k] = ours_all[:, j] * np.sign(likeness[j])
            sizes = unit(sizes[:rank])
            now = ours * sizes, theirs * sizes
            if before is not None:
                for i, j, k in product(
                    range(now[0].shape[0]), range(before[0].shape[0]), range(rank)
                ):
                    related = [
                        math.exp(-((n[i, k] - p[j, k]) ** 2) / 8)
                        for n, p in zip(now, before, strict=True)
                    ]
                    total += (related[0] - related[1]) ** 2 / B
            before = now
    return total


def ickd() -> float:
    total = 0.0
    for b in range(B):
        rows = []
        for m in (MAPS_S[1], SMALL_T):
            flat = m[b].reshape(4, -1)
            rows.append([unit(np.array([np.dot(x, z) for z in flat])) for x in flat])
        total += sum(float(((x - z) ** 2).sum()) for x, z in zip(*rows, strict=True)) / 4 / B
    return total


# By student layer and teacher layer: a projection, and the teacher's map at its size.
LAYERS = rng.normal(0, 1, (2, 3, 2, B, 4, 2, 2))
ATTENTION = rng.normal(0, 1, (B, 2, 3))


def semckd() -> float:
    total = 0.0
    for b, i in product(range(B), range(2)):
        for j, weight in enumerate(softmax(ATTENTION[b, i])):
            total += weight * float(((LAYERS[i, j, 0, b] - LAYERS[i, j, 1, b]) ** 2).mean())
    return total / 2 / B


def wkd_f(mean_weight: float, grid: int, epsilon: float) -> float:
    total = 0.0
    for row, column in product(range(grid), repeat=2):
        for b, c in product(range(B), range(3)):
            found = []
            for m in (MAPS_S[0], MAPS_T[0]):
                step = 6 // grid
                cell = m[b, c, row * step : (row + 1) * step, column * step : (column + 1) * step]
                found.append((cell.mean(), math.sqrt(cell.var(ddof=1) + epsilon)))
            (m_s, d_s), (m_t, d_t) = found
            total += mean_weight * (m_s - m_t) ** 2 + (d_s - d_t) ** 2
    return float(total) / B / grid**2


def dcd(consistency: float) -> float:
    total = 0.0
    for i in range(B):
        own = [math.exp(v) for v in SCORES[i]]
        row = [v / sum(own) for v in own]
        column = [math.exp(SCORES[j, i]) / np.exp(SCORES[:, i]).sum() for j in range(B)]
        total -= math.log(row[i])
        total += consistency * sum(q * math.log(q / p) for p, q in zip(row, column, strict=True))
    return total / B


def rrd(temperature_s: float, temperature_t: float) -> float:
    total = 0.0
    for b in range(B):
        s, u = np.exp(SCORES[b] / temperature_s), np.exp(SCORES[:, b] / temperature_t)
        total -= float((u / u.sum() * np.log(s / s.sum())).sum())
    return total / B


# Of five images the teacher is right about two as a whole; the first layer's 6 x 6 maps are the
# last maps.
HEAD_S, HEAD_T = nn.Linear(3, 4).double(), nn.Linear(3, 4).double()
SMALL_HEAD = nn.Linear(2, 3).double()
TARGET = [0, 1, 2, 3, 1]


def said(head: nn.Linear, vector: Array, bias: bool = True) -> list[float]:
    weight, shift = head.weight.detach().numpy(), head.bias.detach().numpy()
    return [float(np.dot(weight[c], vector)) + bias * float(shift[c]) for c in range(4)]


def softened(z: list[float], temperature: float) -> list[float]:
    e = [math.exp(v / temperature) for v in z]
    return [v / sum(e) for v in e]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def sdd(form: str, temperature: float, scales: tuple[int, ...], complementary: float) -> float:
    total, regions = 0.0, sum(m * m for m in scales)
    for b, k in enumerate(TARGET):
        whole = int(np.argmax(said(HEAD_T, MAPS_T[0][b].mean((1, 2))))) == k
        for m in scales:
            for i, j in product(range(m), repeat=2):
                z_s, z_t = (
                    said(head, pooled(maps[0][b], m)[:, i, j])
                    for head, maps in ((HEAD_S, MAPS_S), (HEAD_T, MAPS_T))
                )
                weight = 1.0 if (int(np.argmax(z_t)) == k) == whole else complementary
                p_s, p_t = softened(z_s, temperature), softened(z_t, temperature)
                if form == "kd":
                    total += weight * kl(p_t, p_s)
                else:
                    q_s, q_t = ([p[c] / (1 - p[k]) for c in range(4) if c != k] for p in (p_s, p_t))
                    own = kl([p_t[k], 1 - p_t[k]], [p_s[k], 1 - p_s[k]])
                    total += weight * (0.5 * own + 3 * kl(q_t, q_s))
    return temperature**2 * total / regions / B


def cat_kd(side: int, normalize: bool) -> float:
    total = 0.0
    for b in range(B):
        found = []
        for head, maps in ((HEAD_S, MAPS_S), (HEAD_T, MAPS_T)):
            cells = pooled(maps[0][b], side)
            cam = np.array(
                [said(head, cells[:, i, j], False) for i, j in product(range(side), repeat=2)]
            ).T
            found.append([unit(row) if normalize else row for row in cam])
        total += sum(float(((x - z) ** 2).sum()) for x, z in zip(*found, strict=True))
    return total / B / 4 / side**2


def byot(temperature: float, share: float, hint_weight: float) -> float:
    total = 0.0
    for answers, embeddings in zip(EXITS, (EMB_S, EMB_T), strict=True):
        for b, k in enumerate(TARGET):
            soft, own = (softened(list(z[b]), temperature) for z in (LAST_ANSWERS, answers))
            total -= (1 - share) * math.log(softened(list(answers[b]), 1.0)[k]) / B
            total -= share * sum(p * math.log(q) for p, q in zip(soft, own, strict=True)) / B
        total += hint_weight * norm(embeddings - EMB_LAST)
    return total


def deit_token(form: str, share: float, temperature: float) -> float:
    total = 0.0
    for b, k in enumerate(TARGET):
        total -= (1 - share) * math.log(softened(list(EXITS[0][b]), 1.0)[k]) / B
        if form == "hard":
            chosen = int(np.argmax(LAST_ANSWERS[b]))
            total -= share * math.log(softened(list(EXITS[1][b]), 1.0)[chosen]) / B
            continue
        p, q = (softened(list(z[b]), temperature) for z in (LAST_ANSWERS, EXITS[1]))
        divergence = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        total += share * temperature**2 * divergence / B
    return total


EXITS = [np.random.default_rng(i).normal(0, 2, (B, 4)) for i in (3, 4)]
LAST_ANSWERS = np.random.default_rng(5).normal(0, 2, (B, 4))
EMB_LAST = np.random.default_rng(6).normal(0, 2, (B, 6))
SCORES = np.random.default_rng(2).normal(0, 1, (B, B))
SMALL_T = np.random.default_rng(1).normal(0, 3, (B, 4, 2, 2))
P = np.abs(rng.normal(1, 0.3, B))
NEGATIVES = np.abs(rng.normal(0.5, 0.2, (B, 7)))


def crd(images: int) -> float:
    total = 0.0
    for b in range(B):
        noise = 7 / images
        total -= math.log(P[b] / (P[b] + noise + 1e-7))
        total -= sum(math.log(noise / (q + noise + 1e-7)) for q in NEGATIVES[b])
    return total / B


VARIANCES = [np.array([0.5, 1.0, 2.0]), np.array([0.3, 0.7, 1.5, 4.0])]
MARGINS = [np.array([-0.1, -0.5, -0.9]), np.array([-2.0, -1.0, -0.3, 0.0])]
LOGITS_S, LOGITS_T = rng.normal(0, 1, (B, 3)), rng.normal(0, 1, (B, 3))

AT_EXITS = ([t(EMB_S), t(EMB_T)], t(LAST_ANSWERS), t(EMB_LAST), torch.tensor(TARGET))
TWO_HEADS = (*maps(EXITS), t(LAST_ANSWERS), torch.tensor(TARGET))
LAST = (t(MAPS_S[0]), t(MAPS_T[0]), HEAD_S, HEAD_T)

KEYS = np.stack([row / np.linalg.norm(row) for row in EMB_T[::-1]])


def embedding(share: float) -> float:
    """One minus cosine, and smooth L1 (0.5 d^2 below 1, else |d| - 0.5) at mean square 1."""
    total = 0.0
    for s, u in zip(EMB_S, EMB_T, strict=True):
        a, b = (each / math.sqrt((each**2).mean()) for each in (s, u))
        gaps = [abs(x - y) for x, y in zip(a, b, strict=True)]
        smooth = sum(0.5 * d * d if d < 1 else d - 0.5 for d in gaps) / len(gaps)
        total += share * (1 - cosine(s, u)) + (1 - share) * smooth
    return total / B


def queue(temperature: float) -> float:
    total = 0.0
    for s, u in zip(EMB_S, EMB_T, strict=True):
        p, q = ([math.exp(cosine(each, key) / temperature) for key in KEYS] for each in (u, s))
        p, q = ([value / sum(values) for value in values] for values in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / B


FORMULAS: dict[str, tuple[Tensor, float]] = {
    "fitnet": (
        fitnet_loss(t(MAPS_S[0]), t(MAPS_T[0])),
        float(((MAPS_S[0] - MAPS_T[0]) ** 2).mean()),
    ),
    "at authors": (at_loss(maps(MAPS_S), maps(MAPS_T)), at("authors")),
    "at paper": (at_loss(maps(MAPS_S), maps(MAPS_T), form="paper"), at("paper")),
    "sp": (sp_loss(maps(MAPS_S), maps(MAPS_T)), sp()),
    "cc": (cc_loss(t(EMB_S), t(EMB_WIDE)), cc(0.4, 2, EMB_WIDE)),
    "cc other": (cc_loss(t(EMB_S), t(EMB_T), gamma=0.9, order=4), cc(0.9, 4, EMB_T)),
    "rkd": (rkd_loss(t(EMB_S), t(EMB_WIDE)), 25 * rkd_distance() + 50 * rkd_angle()),
    "rkd distance": (rkd_loss(t(EMB_S), t(EMB_WIDE), 1.0, 0.0), rkd_distance()),
    "rkd angle": (rkd_loss(t(EMB_S), t(EMB_WIDE), 0.0, 2.0), 2 * rkd_angle()),
    "pkt": (pkt_loss(t(EMB_S), t(EMB_WIDE)), pkt(1e-7)),
    "vid": (vid_loss(maps(MAPS_S), maps(MAPS_T), maps(VARIANCES)), vid(VARIANCES)),
    "nst": (nst_loss(maps(MAPS_S), maps(MAPS_T)), nst()),
    "ft": (ft_loss(t(MAPS_S[1]), t(MAPS_T[1])), ft()),
    "ab": (ab_loss(maps(MAPS_S), maps(MAPS_T), margin=0.8), ab(0.8)),
    "fsp": (fsp_loss(maps(MAPS_S), maps(MAPS_T)), fsp()),
    "ofd": (ofd_loss(maps(MAPS_S), maps(MAPS_T), maps(MARGINS)), ofd(MARGINS)),
    "crd": (crd_loss(t(P), t(NEGATIVES), 40), crd(40)),
    "reviewkd": (reviewkd_loss(maps(MAPS_S), maps(MAPS_T)), review()),
    "simkd": (simkd_loss(maps(MAPS_S), maps(MAPS_T)), float(((MAPS_S[1] - MAPS_T[1]) ** 2).mean())),
    "srrl": (
        srrl_loss(t(EMB_S), t(EMB_T), t(LOGITS_S), t(LOGITS_T)),
        float(((EMB_S - EMB_T) ** 2).mean() + ((LOGITS_S - LOGITS_T) ** 2).mean()),
    ),
    "kdsvd": (kdsvd_loss(maps(MAPS_S), maps(MAPS_T)), svd(1)),
    "kdsvd of two": (kdsvd_loss(maps(MAPS_S), maps(MAPS_T), rank=2), svd(2)),
    "mgd": (mgd_loss(t(MAPS_S[1]), t(MAPS_T[1])), float(((MAPS_S[1] - MAPS_T[1]) ** 2).sum()) / B),
    "diffkd": (
        diffkd_loss(*maps([MAPS_S[1], MAPS_T[1], MAPS_S[0], MAPS_T[0], MAPS_T[1], 3 * MAPS_S[1]])),
        sum(
            float(((a - b) ** 2).mean())
            for a, b in (
                (MAPS_S[1], MAPS_T[1]),
                (MAPS_S[0], MAPS_T[0]),
                (MAPS_T[1], 3 * MAPS_S[1]),
            )
        ),
    ),
    "diffkd of logits": (
        diffkd_loss(*maps([EMB_S, EMB_T, EMB_S, EMB_T])),
        sum(
            float(softmax(b) @ np.log(softmax(b) / softmax(a))) / B
            for a, b in zip(EMB_S, EMB_T, strict=True)
        )
        + float(((EMB_S - EMB_T) ** 2).mean()),
    ),
    "ickd": (ickd_loss(t(MAPS_S[1]), t(SMALL_T)), ickd()),
    "semckd": (semckd_loss(t(LAYERS[:, :, 0]), t(LAYERS[:, :, 1]), t(ATTENTION)), semckd()),
    "dcd": (dcd_loss(t(SCORES), consistency=0.7), dcd(0.7)),
    "rrd": (rrd_loss(t(SCORES), t(SCORES.T), 0.5, 0.2), rrd(0.5, 0.2)),
    "sdd": (
        sdd_loss(*LAST, torch.tensor(TARGET), 2.0, "dkd", 0.5, 3.0, (1, 2, 3), 1.7),
        sdd("dkd", 2.0, (1, 2, 3), 1.7),
    ),
    "sdd with kd": (
        sdd_loss(*LAST, torch.tensor(TARGET), form="kd", scales=(1, 2)),
        sdd("kd", 4.0, (1, 2), 2.0),
    ),
    "cat_kd": (cat_kd_loss(*LAST), cat_kd(2, False)),
    "byot": (byot_loss(maps(EXITS), *AT_EXITS), byot(3.0, 0.3, 0.03)),
    "byot of other numbers": (
        byot_loss(maps(EXITS), *AT_EXITS, 1.5, 0.6, 0.2),
        byot(1.5, 0.6, 0.2),
    ),
    "deit_token": (deit_token_loss(*TWO_HEADS), deit_token("hard", 0.5, 3.0)),
    "deit_token, soft": (
        deit_token_loss(*TWO_HEADS, "soft", 0.1, 2.5),
        deit_token("soft", 0.1, 2.5),
    ),
    "cat_kd of length 1": (cat_kd_loss(*LAST, side=3, normalize=True), cat_kd(3, True)),
    "wkd_f": (wkd_f_loss(t(MAPS_S[0]), t(MAPS_T[0])), wkd_f(4.0, 1, 1e-5)),
    "wkd_f in cells": (
        wkd_f_loss(t(MAPS_S[0]), t(MAPS_T[0]), mean_weight=2.0, grid=3, epsilon=0.1),
        wkd_f(2.0, 3, 0.1),
    ),
    "cosine_features": (
        cosine_features_loss(t(EMB_S), t(EMB_T)),
        sum(1 - cosine(EMB_S[b], EMB_T[b]) for b in range(B)) / B,
    ),
    "embedding": (embedding_loss(t(EMB_S), t(EMB_T)), embedding(0.9)),
    "embedding of another share": (embedding_loss(t(EMB_S), t(EMB_T), 0.25), embedding(0.25)),
    "queue": (queue_loss(t(EMB_S), t(EMB_T), t(KEYS), 0.07), queue(0.07)),
    "queue of another temperature": (queue_loss(t(EMB_S), t(EMB_T), t(KEYS), 0.5), queue(0.5)),
}


@pytest.mark.parametrize("method", FORMULAS)
def test_value_is_the_papers(method: str) -> None:
    found, expected = FORMULAS[method]
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def flat(loss: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    return lambda a, b: loss([a, b], maps(MAPS_T), **options)


SLOPES: dict[str, tuple[Callable[..., Tensor], list[Array]]] = {
    "fitnet": (lambda a: fitnet_loss(a, t(MAPS_T[0])), MAPS_S[:1]),
    "at authors": (flat(at_loss), MAPS_S),
    "at paper": (flat(at_loss, form="paper"), MAPS_S),
    "sp": (flat(sp_loss, pairs=None), MAPS_S),
    "cc": (lambda a: cc_loss(a, t(EMB_T)), [EMB_S]),
    "rkd": (lambda a: rkd_loss(a, t(EMB_WIDE)), [EMB_S]),
    "pkt": (lambda a: pkt_loss(a, t(EMB_WIDE)), [EMB_S]),
    "vid": (lambda a, b, u, v: vid_loss([a, b], maps(MAPS_T), [u, v]), [*MAPS_S, *VARIANCES]),
    "nst": (flat(nst_loss), MAPS_S),
    "ft": (lambda a: ft_loss(a, t(MAPS_T[1])), MAPS_S[1:]),
    "ab": (flat(ab_loss), MAPS_S),
    "fsp": (flat(fsp_loss), MAPS_S),
    "ofd": (flat(ofd_loss, margins=maps(MARGINS)), MAPS_S),
    "crd": (lambda p, n: crd_loss(p, n, 40), [P, NEGATIVES]),
    "reviewkd": (flat(reviewkd_loss), MAPS_S),
    "simkd": (lambda a: simkd_loss([a], maps(MAPS_T[1:])), MAPS_S[1:]),
    "srrl": (lambda a, b: srrl_loss(a, t(EMB_T), b, t(LOGITS_T)), [EMB_S, LOGITS_S]),
    "kdsvd": (flat(kdsvd_loss), MAPS_S),
    "mgd": (lambda a: mgd_loss(a, t(MAPS_T[1])), MAPS_S[1:]),
    "diffkd": (
        lambda a, b, c: diffkd_loss(a, t(MAPS_T[1]), b, t(MAPS_T[0]), c, t(MAPS_T[1])),
        [MAPS_S[1], MAPS_S[0], MAPS_S[1]],
    ),
    "cosine_features": (lambda a: cosine_features_loss(a, t(EMB_T)), [EMB_S]),
    "embedding": (lambda a: embedding_loss(a, t(EMB_T)), [EMB_S]),
    "queue": (lambda a: queue_loss(a, t(EMB_T), t(KEYS), 0.5), [EMB_S]),
    "ickd": (lambda a: ickd_loss(a, t(SMALL_T)), MAPS_S[1:]),
    "semckd": (
        lambda a, b: semckd_loss(a, t(LAYERS[:, :, 1]), b),
        [LAYERS[:, :, 0], ATTENTION],
    ),
    "dcd": (dcd_loss, [SCORES]),
    "rrd": (lambda a: rrd_loss(a, t(SCORES.T)), [SCORES]),
    "sdd": (lambda a: sdd_loss(a, *LAST[1:], torch.tensor(TARGET)), MAPS_S[:1]),
    "cat_kd": (lambda a: cat_kd_loss(a, *LAST[1:]), MAPS_S[:1]),
    "byot": (lambda a, b: byot_loss([a, b], *AT_EXITS), EXITS),
    "wkd_f": (lambda a: wkd_f_loss(a, t(MAPS_T[0]), grid=2), MAPS_S[:1]),
    "wkd_l": (
        lambda a: wkd_l_loss(a, t(LOGITS_T), torch.arange(B) % 3, SMALL_HEAD),
        [LOGITS_S],
    ),
    "ldrld": (lambda a: ldrld_loss(a, t(LOGITS_T), depth=2), [LOGITS_S]),
}


@pytest.mark.parametrize("method", SLOPES)
def test_gradient_by_finite_differences(method: str) -> None:
    """Along random directions, since all values would take long; the slope must not be 0."""
    loss, arrays = SLOPES[method]
    leaves = [t(a).requires_grad_() for a in arrays]
    slopes = torch.autograd.grad(loss(*leaves), leaves)
    assert all(slope.abs().sum() > 0 for slope in slopes) or method == "sp"
    g = np.random.default_rng(1)
    for _ in range(3):
        ways = [t(g.normal(0, 1, a.shape)) for a in arrays]
        step = 1e-6
        up, down = (
            loss(*(t(a) + sign * step * w for a, w in zip(arrays, ways, strict=True)))
            for sign in (1, -1)
        )
        expected = float((up - down) / (2 * step))
        found = float(sum((slope * w).sum() for slope, w in zip(slopes, ways, strict=True)))
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_singular_vectors_have_a_finite_gradient_where_values_are_equal() -> None:
    x = torch.eye(4, dtype=torch.float64)[None].requires_grad_()
    weights = torch.arange(8, dtype=torch.float64).reshape(1, 4, 2)
    (_directions(x, 2) * weights).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() < 1e6
    assert _directions(torch.zeros(1, 3, 4), 2).isfinite().all()


class TestAdapters:
    def test_tokens_are_maps_without_the_class_token(self) -> None:
        # One class token and nine of an image.
        tokens = torch.arange(2 * 10 * 3).reshape(2, 10, 3).float()
        found = as_map(tokens)
        assert found.shape == (2, 3, 3, 3)
        assert found[1, 2, 1, 0] == tokens[1, 1 + 3, 2]

    def test_the_larger_map_is_averaged_down(self) -> None:
        big, small = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)
        one, two = same_size(big, small)
        assert torch.equal(two, small)
        torch.testing.assert_close(one[0, 0, 0, 0], big[0, 0, :2, :2].mean())
        assert same_size(small, big)[1].shape == (2, 3, 2, 2)

    def test_vid_starts_at_its_variance_and_learns_it(self) -> None:
        vid = VID(((3, 4, 4),), ((5, 4, 4),), variance=5.0)
        assert torch.nn.functional.softplus(vid.raw[0]).tolist() == pytest.approx(
            [5.0 - 1e-5] * 5, rel=1e-6
        )
        vid([torch.randn(2, 3, 4, 4)], [torch.randn(2, 5, 4, 4)]).backward()
        assert vid.raw[0].grad.abs().sum() > 0

    def test_ofd_margins_are_means_of_negative_values_over_all_images_so_far(self) -> None:
        ofd = OFD(((4, 3, 3),), ((4, 3, 3),))
        batches = [MAPS_T[1][:2], MAPS_T[1][2:]]
        for batch in batches:
            ofd([t(batch).float()], [t(batch).float()])
        values = [MAPS_T[1][:, c] for c in range(4)]
        expected = [v[v < 0].mean() for v in values]
        assert (ofd.sum_0 / ofd.count_0).tolist() == pytest.approx(expected, rel=1e-6)
        before = ofd.state_dict()["sum_0"].clone()
        ofd.eval()([t(batches[0]).float()], [t(batches[0]).float()])
        assert torch.equal(before, ofd.sum_0)  # not while it does not train

    def test_ft_leaves_a_paraphraser_that_was_trained_before(self) -> None:
        torch.manual_seed(0)
        fixed = FT(((3, 4, 4),), ((6, 4, 4),), reconstruction=0.0)
        before = {k: v.clone() for k, v in fixed.paraphraser.state_dict().items()}
        fixed([torch.randn(8, 3, 4, 4)], [torch.randn(8, 6, 4, 4)]).backward()
        # Batch norm too
        assert all(torch.equal(before[k], v) for k, v in fixed.paraphraser.state_dict().items())
        assert not any(p.requires_grad for p in fixed.paraphraser.parameters())
        assert all(p.grad is not None for p in fixed.translator.parameters())
        along = FT(((3, 4, 4),), ((6, 4, 4),)).train()
        along([torch.randn(8, 3, 4, 4)], [torch.randn(8, 6, 4, 4)]).backward()
        assert all(p.grad is not None for p in along.parameters())

    def test_diffkd_cleans_the_students_map_by_ddim(self) -> None:
        """Five steps from the middle of the diffusion: at times 400, 300, 200, 100 and 0."""
        left = [1.0]
        for time in range(TIMES):
            left.append(left[-1] * (1 - (1e-4 + (0.02 - 1e-4) * time / (TIMES - 1))))
        np.testing.assert_allclose(signal_shares().numpy(), left[1:], rtol=1e-12)
        denoiser = Denoiser(3, 4, steps=5, spatial=True).double()
        denoiser.predict = nn.Tanh()  # any function of map and time
        with torch.no_grad():
            (*_, last) = denoiser.adapter
            last.weight.zero_()
            last.bias.copy_(t([0.3, -0.4]))
        x, noise = rng.normal(0, 1, (2, B, 4, 2, 2))
        share = math.exp(0.3) / (math.exp(0.3) + math.exp(-0.4))
        expected = share * x + (1 - share) * noise
        embedding = denoiser.times.weight.detach().numpy()
        for time in (400, 300, 200, 100, 0):
            now, later = left[time + 1], left[time - 100 + 1] if time else 1.0
            predicted = np.tanh(expected + embedding[time][None, :, None, None])
            clean = (expected - math.sqrt(1 - now) * predicted) / math.sqrt(now)
            expected = math.sqrt(later) * clean + math.sqrt(1 - later) * predicted
        np.testing.assert_allclose(denoiser.denoise(t(x), t(noise)).detach(), expected, rtol=1e-9)

    def test_diffkd_learns_to_denoise_and_draws_alike_wherever_an_image_is(self) -> None:
        torch.manual_seed(0)
        diffkd = DiffKD(((3, 4, 4),), ((8, 4, 4),), num_classes=5, latent=4)
        s, t_, index = torch.randn(6, 3, 4, 4), torch.randn(6, 8, 4, 4), torch.arange(6)
        logits = torch.randn(2, 6, 5)
        turn = torch.tensor([4, 2, 0, 5, 3, 1])
        found = []
        for order in (index, turn):
            torch.manual_seed(1)
            loss = diffkd([s[order]], [t_[order]], *logits[:, order], index[order])
            found.append(loss.item())
        assert found[1] == pytest.approx(found[0], rel=1e-5)
        diffkd([s], [t_], *logits, index).backward()
        without = [name for name, each in diffkd.named_parameters() if each.grad is None]
        assert not without, "DDP stops where a parameter has no gradient"
        wrong: list[dict[str, Any]] = [{"steps": 0}, {"latent": 0}]
        for keywords in wrong:
            with pytest.raises(ValueError, match="found 0"):
                DiffKD(((3, 4, 4),), ((8, 4, 4),), 5, **keywords)

    def test_mgd_masks_whole_channels_of_an_image(self) -> None:
        torch.manual_seed(0)
        mgd = MGD(((40, 2, 2),), ((40, 2, 2),), masked=0.5)
        mgd.generate = nn.Identity()
        ones = torch.ones(50, 40, 2, 2)
        lost = mgd([ones], [ones], torch.arange(50)).item() / (40 * 4)
        assert lost == pytest.approx(0.5, abs=0.05)
        mgd.masked = 0.0
        assert mgd([ones], [ones], torch.arange(50)).item() == 0

    def test_mgd_gives_an_image_the_same_mask_wherever_it_is_in_the_batch(self) -> None:
        torch.manual_seed(0)
        mgd = MGD(((8, 2, 2),), ((8, 2, 2),), masked=0.5)
        s, t_, index, order = (
            torch.randn(6, 8, 2, 2),
            torch.randn(6, 8, 2, 2),
            torch.arange(6),
            torch.randperm(6),
        )
        found = []
        for turn in (torch.arange(6), order):
            torch.manual_seed(1)
            found.append(mgd([s[turn]], [t_[turn]], index[turn]).item())
        assert found[1] == pytest.approx(found[0], rel=1e-6)
        torch.manual_seed(2)
        assert mgd([s], [t_], index).item() != pytest.approx(found[0], rel=1e-3)  # other masks

    def test_reviewkd_fuses_from_the_deepest_up(self) -> None:
        """The shallow student map must depend on the deep one, and not the reverse."""
        torch.manual_seed(0)
        review = ReviewKD(((3, 8, 8), (6, 4, 4)), ((5, 4, 4), (7, 2, 2)), 6, 7).eval()
        feats = [
            torch.randn(2, 3, 8, 8, requires_grad=True),
            torch.randn(2, 6, 4, 4, requires_grad=True),
        ]
        pooled_s = torch.randn(2, 6, requires_grad=True)
        deep, through = review.fusions[0](as_map(pooled_s), None, (1, 1))
        middle, through = review.fusions[1](feats[1], through, (2, 2))
        shallow, _ = review.fusions[2](feats[0], through, (4, 4))
        assert [m.shape[1:] for m in (deep, middle, shallow)] == [(7, 1, 1), (7, 2, 2), (5, 4, 4)]
        gradient = torch.autograd.grad(shallow.sum(), [*feats, pooled_s], retain_graph=True)
        assert all(g.abs().sum() > 0 for g in gradient)
        assert torch.autograd.grad(deep.sum(), feats, allow_unused=True) == (None, None)


class TestCRD:
    LABELS = torch.tensor([0, 2, 1, 0, -1, 2, 1, 0, 2, -1])

    def made(self, **options: Any) -> CRD:
        torch.manual_seed(0)
        return CRD(4, 6, self.LABELS, **{"feat_dim": 8, "nce_k": 6, **options}).double()

    def batch(self, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        pooled_s, pooled_t = (
            torch.randn(4, width, generator=g, dtype=torch.float64) for width in (4, 6)
        )
        return pooled_s, pooled_t, torch.tensor([3, 1, 6, 4])

    def test_value_and_memory_are_the_papers(self) -> None:
        crd = self.made()
        pooled_s, pooled_t, index = self.batch()
        banks = {"s": crd.bank_s.numpy().copy(), "t": crd.bank_t.numpy().copy()}
        torch.manual_seed(5)
        drawn = crd.negatives(index).numpy()
        torch.manual_seed(5)
        found = crd(pooled_s, pooled_t, index)
        with torch.no_grad():
            v = {"s": crd.embed_s(pooled_s).numpy(), "t": crd.embed_t(pooled_t).numpy()}
        v = {side: np.stack([unit(row) for row in rows]) for side, rows in v.items()}
        total = 0.0
        for one, other in (("s", "t"), ("t", "s")):
            scores = [
                [
                    math.exp(float(np.dot(v[one][b], banks[other][i])) / 0.07)
                    for i in (int(index[b]), *drawn[b])
                ]
                for b in range(4)
            ]
            scale = float(np.mean(scores)) * 10
            for row in scores:
                p = [score / scale for score in row]
                total -= math.log(p[0] / (p[0] + 0.6 + 1e-7)) / 4
                total -= sum(math.log(0.6 / (q + 0.6 + 1e-7)) for q in p[1:]) / 4
        assert found.item() == pytest.approx(total, rel=1e-9)
        for side, bank in (("s", crd.bank_s), ("t", crd.bank_t)):
            expected = banks[side].copy()
            for b, i in enumerate(index.tolist()):
                expected[i] = unit(0.5 * banks[side][i] + 0.5 * v[side][b])
            np.testing.assert_allclose(bank.numpy(), expected, rtol=1e-9)
        assert crd.scale.ne(0).all()

    def test_negatives_are_of_other_classes_and_all_of_them_come(self) -> None:
        crd = self.made(nce_k=10)
        index = torch.arange(10)
        drawn = [crd.negatives(index) for _ in range(100)]
        for i, label in enumerate(self.LABELS.tolist()):
            met = {int(j) for each in drawn for j in each[i]}
            others = {j for j in range(10) if label < 0 or self.LABELS[j] != label}
            assert met == others

    def test_negatives_are_drawn_for_each_image_alone_and_uniformly(self) -> None:
        labels = torch.arange(60) % 4
        crd = CRD(4, 6, labels, feat_dim=8, nce_k=60)
        torch.manual_seed(0)
        index = torch.arange(0, 60, 5)  # three images of each class
        drawn = torch.stack([crd.negatives(index) for _ in range(400)], dim=1).flatten(1)
        same = torch.stack([(drawn[0] == row).double().mean() for row in drawn[1:]])
        assert same.max() < 0.04  # 1 / 45 where two images draw apart, 1 where they share
        for i, row in zip(index.tolist(), drawn, strict=True):
            counts = torch.bincount(row, minlength=60).double()
            others = labels != labels[i]
            assert counts[~others].sum() == 0
            expected = 24000 / 45
            chi2 = ((counts[others] - expected) ** 2 / expected).sum()
            assert chi2 < 86  # 44 degrees of freedom: 1 in 10,000 is above it

    def test_an_image_draws_the_same_wherever_it_is_in_the_batch(self) -> None:
        crd, index = self.made(), torch.tensor([3, 1, 6, 4])
        found = []
        for turn in (torch.arange(4), torch.tensor([2, 0, 3, 1])):
            torch.manual_seed(3)
            found.append(crd.negatives(index[turn])[turn.argsort()])
        assert torch.equal(found[0], found[1])

    def test_no_more_negatives_than_images(self) -> None:
        assert self.made(nce_k=16384).negatives(torch.arange(3)).shape == (3, 10)
        # One class
        assert CRD(4, 6, torch.zeros(5, dtype=torch.int64)).negatives(torch.arange(2)).shape == (
            2,
            5,
        )

    def test_state_resumes_exactly(self) -> None:
        one, other = self.made(), CRD(4, 6, self.LABELS, feat_dim=8, nce_k=6).double()
        one(*self.batch(1))
        other.load_state_dict(one.state_dict())
        found = []
        for crd in (one, other):
            torch.manual_seed(9)
            found.append(
                [crd(*self.batch(2)).item(), crd(*self.batch(3)).item(), crd.bank_s.clone()]
            )
        assert found[0][:2] == found[1][:2]
        assert torch.equal(found[0][2], found[1][2])
        assert {"bank_s", "bank_t", "scale"} <= set(one.state_dict())

    def test_memory_rests_while_it_does_not_train(self) -> None:
        crd = self.made().eval()
        before = crd.bank_s.clone()
        crd(*self.batch())
        assert torch.equal(before, crd.bank_s)


def test_byots_exits_learn_from_the_last_answer_and_not_it_from_them() -> None:
    """Nor is the body without them: what is under an exit is trained by it."""
    torch.manual_seed(0)
    byot = BYOT(((3, 8, 8), (4, 4, 4), (6, 2, 2)), 6, 5)
    feats = [torch.randn(4, *s, requires_grad=True) for s in ((3, 8, 8), (4, 4, 4), (6, 2, 2))]
    logits, embedding = torch.randn(4, 5, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    byot(feats, logits, embedding, torch.arange(4)).backward()
    assert all(p.grad is not None for p in byot.parameters())
    assert feats[0].grad.abs().sum() > 0
    assert feats[1].grad.abs().sum() > 0
    assert (logits.grad, embedding.grad, feats[2].grad) == (None, None, None)
    assert byot.exits[0][0].stride == (4, 4)
    with pytest.raises(ValueError, match="two or more"):
        BYOT(((6, 2, 2),), 6, 5)


class TestSemCKD:
    shapes_s, shapes_t = ((3, 6, 6), (4, 3, 3)), ((3, 6, 6), (5, 2, 2))

    def test_attention_is_the_product_of_query_and_key(self) -> None:
        """Of the images' similarities; the larger map is averaged down."""
        torch.manual_seed(0)
        loss = SemCKD(self.shapes_s, self.shapes_t, batch_size=8).double()
        own = [torch.randn(8, *each, dtype=torch.float64) for each in self.shapes_s]
        theirs = [torch.randn(8, *each, dtype=torch.float64) for each in self.shapes_t]
        rows: list[list[Array]] = []
        for looks, feats in ((loss.queries, own), (loss.keys, theirs)):
            made = []
            for look, maps in zip(looks, feats, strict=True):
                flat = maps.flatten(1).numpy()
                with torch.no_grad():
                    found = look.layers(t([[np.dot(x, z) for z in flat] for x in flat])).numpy()
                made.append(np.stack([unit(row) for row in found]))
            rows.append(made)
        scores = np.einsum("ibd,jbd->bij", np.stack(rows[0]), np.stack(rows[1]))
        pool = torch.nn.functional.adaptive_avg_pool2d
        pairs = [
            [
                (s, pool(u, s.shape[2:])) if s.shape[2] < u.shape[2] else (pool(s, u.shape[2:]), u)
                for u in theirs
            ]
            for s in own
        ]
        projected = [
            [to(s) for to, (s, _) in zip(way, row, strict=True)]
            for way, row in zip(loss.projections, pairs, strict=True)
        ]
        wanted = [[u for _, u in row] for row in pairs]
        expected = semckd_loss(projected, wanted, t(scores))
        assert loss(own, theirs).item() == pytest.approx(expected.item(), rel=1e-12)

    def test_a_smaller_batch_has_zeros_for_the_images_that_are_missing(self) -> None:
        look = SemCKD(self.shapes_s, self.shapes_t, batch_size=8).double().queries[0]
        maps = torch.randn(5, 3, 6, 6, dtype=torch.float64)
        beside = torch.cat([maps, torch.zeros(3, 3, 6, 6, dtype=torch.float64)])
        torch.testing.assert_close(look(maps), look(beside)[:5])


class TestRRD:
    def test_a_batch_takes_the_place_of_the_oldest(self) -> None:
        torch.manual_seed(0)
        rrd = RRD(4, 6, feat_dim=8, nce_k=5).double()
        first = rrd.queue.clone()
        batches = [torch.randn(3, 6, dtype=torch.float64) for _ in range(2)]
        with torch.no_grad():
            own = [np.stack([unit(v) for v in rrd.embed_t(x).numpy()]) for x in batches]
        rrd(torch.randn(3, 4, dtype=torch.float64), batches[0])
        np.testing.assert_allclose(rrd.queue[:3].numpy(), own[0])
        assert torch.equal(rrd.queue[3:], first[3:])
        resumed = RRD(4, 6, feat_dim=8, nce_k=5).double()
        resumed.load_state_dict(rrd.state_dict())
        for each in (rrd, resumed):  # goes round, from the state too
            each(torch.randn(3, 4, dtype=torch.float64), batches[1])
            np.testing.assert_allclose(
                each.queue.numpy(), np.stack([own[1][2], *own[0][1:], *own[1][:2]])
            )
        rrd.eval()(torch.randn(3, 4, dtype=torch.float64), batches[0])
        assert torch.equal(rrd.queue, resumed.queue)  # not while it does not train

    def test_it_is_the_loss_of_cosines_and_trains_the_students_embedding_alone(self) -> None:
        torch.manual_seed(0)
        rrd = RRD(4, 6, feat_dim=8, nce_k=7).double()
        x, y = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
        found = rrd(x, y)
        found.backward()
        assert {n for n, p in rrd.named_parameters() if p.grad is not None} == {
            "embed_s.weight",
            "embed_s.bias",
        }
        with torch.no_grad():
            v_s, v_t = (
                np.stack([unit(v) for v in e.numpy()]) for e in (rrd.embed_s(x), rrd.embed_t(y))
            )
        queue = rrd.queue.numpy()
        assert found.item() == pytest.approx(
            rrd_loss(t(v_s @ queue.T), t(v_t @ queue.T)).item(), rel=1e-12
        )


@pytest.mark.slow
def test_who_looks_into_the_nets() -> None:
    asked = {
        m: {n for term in read_loss(node).terms for n in term.signals}
        for m, node in zip(METHODS, map(loss_node, METHODS), strict=True)
    }
    assert {m for m, names in asked.items() if names & set(FEATURES)} == set(ON_FEATURES)


kinds = st.sampled_from(["maps", "vectors", "tokens"])
sizes = st.integers(1, 5)


@st.composite
def shape(draw: Callable[..., Any], wide: int | None = None) -> tuple[int, ...]:
    """Shapes of features of an image: maps of any size, a vector, or tokens."""
    channels, kind = wide or draw(sizes), draw(kinds)
    if kind == "vectors":
        return (channels,)
    if kind == "tokens":
        return draw(st.integers(1, 10)), channels
    return channels, draw(sizes), draw(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("method", ON_FEATURES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    data=st.data(), batch=st.integers(1, 4), taps=st.integers(2, 3), widths=st.tuples(sizes, sizes)
)
def test_takes_any_shapes(
    method: str, data: Any, batch: int, taps: int, widths: tuple[int, int]
) -> None:
    wide = data.draw(sizes) if method == "simkd" else None  # its student has the teacher's channels
    shapes = {side: tuple(data.draw(shape(wide)) for _ in range(taps)) for side in "st"}
    torch.manual_seed(0)
    signals: dict[str, Any] = {
        "target": torch.zeros(batch, dtype=torch.int64),
        "index": torch.arange(batch),
    }
    for side, width in zip("st", widths, strict=True):
        feats = [torch.randn(batch, *each, requires_grad=True) for each in shapes[side]]
        signals |= {
            f"feats_{side}": feats,
            f"preacts_{side}": feats,
            f"logits_{side}": torch.randn(batch, 3),
        }
        signals |= {f"pooled_{side}": torch.randn(batch, width, requires_grad=True)}
        signals |= {f"maps_{side}": torch.randn(batch, width, taps, 3, requires_grad=True)}
    signals |= {
        "head_s": nn.Linear(widths[0], 3),
        "head_t": nn.Conv2d(widths[1], 3, 1) if taps == 2 else nn.Linear(widths[1], 3),
        "epoch": 0,
        "progress": 1.0,
        "x": torch.zeros(batch, 1, 2, 2),
    }
    build_arguments = {
        "shapes_s": shapes["s"],
        "shapes_t": shapes["t"],
        "width_s": widths[0],
        "width_t": widths[1],
        "batch_size": 4,
    }
    objective = Objective(
        read_loss(loss_node(method)),
        Shape(1, 2, 3),
        build_arguments=build_arguments | {"labels": torch.arange(6) % 3},
    )
    loss = objective(signals)["loss"]
    assert loss.shape == ()
    assert torch.isfinite(loss)
    if loss.requires_grad:
        loss.backward()
    asked = [
        leaf
        for n in ("feats_s", "pooled_s")
        for leaf in (signals[n] if isinstance(signals[n], list) else [signals[n]])
    ]
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in asked)
    given_t = [*signals["feats_t"], signals["pooled_t"]]
    assert all(leaf.grad is None for leaf in given_t)


# Weight of the labels, weight of the term, and its numbers, as the authors train CIFAR, or later
# comparisons.
AUTHORS: dict[str, tuple[float, Any, dict[str, Any]]] = {
    "fitnet": (1.0, 100.0, {"tap": None}),
    "at": (1.0, 1000.0, {"form": "authors", "power": 2.0}),
    "sp": (1.0, 3000.0, {"pairs": 1}),
    "cc": (1.0, 100.0, {"gamma": 0.4, "order": 2}),
    "rkd": (1.0, 1.0, {"distance_weight": 25.0, "angle_weight": 50.0}),
    "pkt": (1.0, 30000.0, {"epsilon": 1e-7}),
    "vid": (1.0, 1.0, {"variance": 5.0}),
    "nst": (1.0, 50.0, {"pairs": None}),
    "ft": (1.0, 500.0, {"rate": 0.5, "reconstruction": 0.005}),
    "ab": (1.0, 0.003, {"margin": 1.0}),
    "fsp": (1.0, 50.0, {}),
    "ofd": (1.0, 0.001, {}),
    "crd": (1.0, 0.8, {"feat_dim": 128, "nce_k": 16384, "nce_t": 0.07, "nce_m": 0.5}),
    "reviewkd": (1.0, {"schedule": "warmup", "end": 5.0, "over": 0.083}, {"most": 512}),
    "simkd": (0.0, 1.0, {}),
    "srrl": (1.0, 1.0, {}),
    "kdsvd": (1.0, 1.0, {"rank": 1}),
    "mgd": (1.0, 7e-5, {"masked": 0.15}),
    "diffkd": (1.0, 1.0, {"latent": None, "steps": 5}),
    "cosine_features": (1.0, 1.0, {}),
    "embedding": (0.0, 1.0, {"cosine_share": 0.9, "maps_weight": 1.0}),
    "queue": (0.0, 1.0, {"size": 8192, "temperature": 0.07}),
    "wkd_l": (
        1.0,
        1.0,
        {
            "temperature": 8.0,
            "gamma": {"schedule": "cosine", "start": 600.0, "end": 0.0, "after": 0.625},
            "sharpen": 1.0,
            "regularization": 0.05,
            "iterations": 10,
        },
    ),
    "wkd_f": (
        1.0,
        {"schedule": "cosine", "start": 0.08, "end": 0.0, "after": 0.625},
        {"mean_weight": 4.0, "grid": 1, "epsilon": 1e-5},
    ),
    "ickd": (1.0, 2.5, {}),
    "semckd": (1.0, 400.0, {"factor": 4}),
    "sdd": (
        1.0,
        {"schedule": "warmup", "end": 1.0, "over": 0.083},
        {
            "temperature": 4.0,
            "form": "dkd",
            "target_weight": 1.0,
            "non_target_weight": 8.0,
            "scales": [1, 2, 4],
            "complementary": 2.0,
        },
    ),
    "byot": (
        1.0,
        1.0,
        {"middle": 128, "temperature": 3.0, "share": 0.3, "hint_weight": 0.03},
    ),
    "cat_kd": (1.0, 15.0, {"side": 2, "normalize": False}),
    "dcd": (1.0, 1.0, {"feat_dim": 128, "consistency": 0.5, "scale": 1.0, "most": 10.0}),
    "rrd": (
        1.0,
        1.0,
        {"feat_dim": 128, "nce_k": 16384, "temperature_s": 0.1, "temperature_t": 0.02},
    ),
}


@pytest.mark.parametrize("method", ON_FEATURES)
def test_configured_as_the_authors_do(method: str) -> None:
    node = loss_node(method)
    term = node["terms"][method]
    numbers = {name: value for name, value in term["loss"].items() if name != "_target_"}
    assert (node["ce_weight"], term["weight"], numbers) == AUTHORS[method]
    assert set(node["terms"]) == ({"kd", method} if method == "semckd" else {method})


@pytest.mark.parametrize("method", ["fsp", "kdsvd"])
def test_one_tap_is_refused_where_two_are_related(method: str) -> None:
    from kd.errors import UserError

    build_arguments = {"shapes_s": ((3, 2, 2),), "shapes_t": ((3, 2, 2),)}
    with pytest.raises(UserError, match="two taps or more"):
        Objective(read_loss(loss_node(method)), Shape(1, 2, 3), build_arguments=build_arguments)


def test_flows_are_of_neighbours() -> None:
    assert len(list(pairwise(MAPS_S))) == 1
    three = [*maps(MAPS_S), t(MAPS_S[1])]
    assert (
        fsp_loss(three, [*maps(MAPS_T), t(MAPS_T[1])]).item()
        > fsp_loss(maps(MAPS_S), maps(MAPS_T)).item()
    )


def test_the_queue_holds_the_last_embeddings_of_length_one() -> None:
    loss = Queue(6, 6, torch.zeros(5), size=64)  # no more than the training images
    with torch.no_grad():
        loss.project.weight.copy_(torch.eye(6))
        loss.project.bias.zero_()
    assert loss(t(EMB_S[:2]).float(), t(EMB_T[:2]).float()) > 0
    loss(t(EMB_S[:3]).float(), t(EMB_T[:3]).float())
    loss(t(EMB_S[:2]).float(), 5 * t(EMB_T[:2]).float())
    wanted = [EMB_T[i] / np.linalg.norm(EMB_T[i]) for i in (0, 1, 0, 1, 2)]
    assert np.abs(loss.bank.numpy() - np.stack(wanted)).max() < 1e-6
    assert loss(t(EMB_T[:3]).float(), t(EMB_T[:3]).float()).item() == pytest.approx(0, abs=1e-6)
    loss.eval()(t(EMB_S[:2]).float(), t(EMB_T[3:5]).float())
    assert int(loss.entered) == 10, "validation leaves the queue as it is"


def test_maps_are_matched_where_both_nets_have_them() -> None:
    both = Embedding(4, 6, ((8, 4, 4),), ((9, 6),))  # a map, and nine tokens of six numbers
    assert isinstance(both.fit, nn.Sequential)
    assert both.fit[0].weight.shape == (6, 8, 1, 1)
    features = ([torch.randn(2, 8, 4, 4)], [torch.randn(2, 9, 6)])
    both(*features, torch.randn(2, 4), torch.randn(2, 6)).backward()
    assert all(p.grad is not None for p in both.parameters())
    assert Embedding(4, 6, ((4,),), ((9, 6),)).fit is None
    assert Embedding(4, 6, ((8, 4, 4),), ((9, 6),), maps_weight=0.0).fit is None
