"""Divergences and their gradients by TRL and torch, for crates/loss/tests/distil.rs; calibration by
torchmetrics, netcal and scikit-learn, for crates/probe/tests/calibration.rs.

    python make_distil.py

Calls `GKDTrainer.generalized_jsd_loss` of TRL on given logits; skew divergences are DistiLLM's formulas
in torch operations. Writes golden/distil.json and golden/calibration.json.
"""

import json
import pathlib

import numpy
import torch
from netcal.metrics import ECE
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss
from torchmetrics.classification import BinaryCalibrationError
from trl.experimental.gkd import GKDTrainer

HERE = pathlib.Path(__file__).parent


def skewed(student, teacher, alpha, reverse):
    p, r = student.softmax(-1), teacher.softmax(-1)
    if reverse:
        mixed = (1 - alpha) * r + alpha * p
        return (p * (p.log() - mixed.log())).sum(-1)
    mixed = alpha * r + (1 - alpha) * p
    return (r * (r.log() - mixed.log())).sum(-1)


def distil():
    torch.manual_seed(0)
    rows, vocab = 4, 23
    student, teacher = 2 * torch.randn(rows, vocab), 2 * torch.randn(rows, vocab)
    cases = []

    def case(settings, divergence):
        x = student.clone().double().requires_grad_()
        losses = divergence(x)
        losses.sum().backward()
        cases.append({"settings": settings, "losses": losses.tolist(), "gradient": x.grad.tolist()})

    for beta in [0.0, 0.1, 0.5, 0.9, 1.0]:
        for temperature in [0.7, 1.0, 2.0]:
            settings = {"divergence": "js", "beta": beta, "temperature": temperature}
            case(
                settings,
                lambda x: GKDTrainer.generalized_jsd_loss(
                    x[:, None], teacher.double()[:, None], beta=beta, temperature=temperature, reduction="none"
                ).sum((-1, -2)),
            )
    for alpha in [0.1, 0.5]:
        for name, reverse in [("skew_kl", False), ("skew_reverse_kl", True)]:
            case(
                {"divergence": name, "alpha": alpha},
                lambda x: skewed(x, teacher.double(), alpha, reverse),
            )
    golden = {"student": student.tolist(), "teacher": teacher.tolist(), "cases": cases}
    (HERE / "distil.json").write_text(json.dumps(golden) + "\n")


def calibration():
    rng = numpy.random.default_rng(0)
    n = 400
    confidences = rng.beta(5, 2, n).astype(numpy.float32).astype(numpy.float64)
    right = (rng.random(n) < confidences**1.7).astype(int)
    golden = {"confidences": confidences.tolist(), "right": right.tolist(), "width": {}, "mass": {}}
    for bins in [5, 10, 15]:
        metric = BinaryCalibrationError(n_bins=bins, norm="l1")
        found = metric(torch.tensor(confidences), torch.tensor(right))
        most = BinaryCalibrationError(n_bins=bins, norm="max")(torch.tensor(confidences), torch.tensor(right))
        golden["width"][bins] = [float(found), float(most)]
    # netcal cuts at quantiles.
    for bins in [5, 10]:
        golden["mass"][bins] = float(ECE(bins, equal_intervals=False).measure(confidences, right))
    golden["brier"] = float(brier_score_loss(right, confidences))
    fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(confidences[:250], right[:250])
    golden["isotonic"] = fit.predict(confidences[250:]).tolist()
    (HERE / "calibration.json").write_text(json.dumps(golden) + "\n")


distil()
calibration()
