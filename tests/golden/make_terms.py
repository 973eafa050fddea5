"""Terms of the token loss, penalties and their gradients by PyTorch, for crates/loss/tests/terms.rs.

    python make_terms.py

Label smoothing is `torch.nn.functional.cross_entropy`'s, checked against transformers' `LabelSmoother`; entropy and
divergence are those of `torch.distributions`; unlikelihood builds its candidates as the authors' code does, row by row.
Writes golden/terms.json: losses as a step minimises them, with gradients by every logit.
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence
from transformers.trainer_pt_utils import LabelSmoother

VOCAB = 11
# Weights of the targets of each row; 0 is not trained.
ROWS = [[0.0, 0.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.5], [0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0, 1.0]]
CASES = [
    dict(),
    dict(normaliser="sequence"),
    dict(normaliser="batch"),
    dict(normaliser={"constant": 7.5}),
    dict(label_smoothing=0.1),
    dict(label_smoothing=0.3, normaliser="sequence"),
    dict(focal_gamma=2.0),
    dict(focal_gamma=0.5, normaliser="batch"),
    dict(unlikelihood=1.0),
    dict(z_loss=1e-2),
    dict(label_smoothing=0.2, focal_gamma=1.5, unlikelihood=0.7, z_loss=1e-3, normaliser={"constant": 4.0}),
]
PENALTIES = [dict(entropy=0.1), dict(entropy=-0.3), dict(kl=0.5), dict(entropy=0.2, kl=0.05)]


def coefficients(weights, normaliser):
    """What each token's cost is multiplied by, and what the sum is divided by."""
    rows = [torch.tensor(row) for row in weights]
    trained = [row for row in rows if (row != 0).any()]
    if normaliser == "sequence":
        rows = [row / row.sum() if (row != 0).any() else row for row in rows]
        return torch.cat(rows), len(trained)
    by = {"token": sum(row.sum().item() for row in rows), "batch": len(trained)}
    return torch.cat(rows), by[normaliser] if isinstance(normaliser, str) else normaliser["constant"]


def ruled_out(targets, weights):
    """1 at every token that was a trained target before in its row and is not this one's target."""
    all_rows = []
    for row, weight in zip(targets, weights):
        row = torch.tensor(row)
        known = torch.tensor(weight) != 0
        n = len(row)
        candidates = row.unsqueeze(0).expand(n, n)
        usable = torch.ones(n, n).tril(-1).bool() & known.unsqueeze(0) & (candidates != row.unsqueeze(1))
        marks = torch.zeros(n, VOCAB)
        for i in range(n):
            marks[i, candidates[i][usable[i]]] = 1
        all_rows.append(marks)
    return torch.cat(all_rows)


def cost(logits, targets, weights, case):
    flat = torch.tensor([t for row in targets for t in row])
    smoothing = case.get("label_smoothing", 0.0)
    nll = F.cross_entropy(logits, flat, reduction="none")
    smoothed = F.cross_entropy(logits, flat, reduction="none", label_smoothing=smoothing)
    p = torch.exp(-nll)
    # The focal factor belongs to the target's own share.
    each = smoothed + (1 - smoothing) * ((1 - p) ** case.get("focal_gamma", 0.0) - 1) * nll
    left = torch.clamp(1 - torch.softmax(logits, -1), min=1e-5)
    each = each + case.get("unlikelihood", 0.0) * -(torch.log(left) * ruled_out(targets, weights)).sum(-1)
    return each + case.get("z_loss", 0.0) * torch.logsumexp(logits, -1) ** 2


def main():
    torch.manual_seed(3)
    n = sum(map(len, ROWS))
    # Few distinct targets, so that some come again.
    targets = [torch.randint(0, 4, (len(row),)).tolist() for row in ROWS]
    start = 2 * torch.randn(n, VOCAB)
    base = start + torch.randn(n, VOCAB)
    out = {"vocab": VOCAB, "weights": ROWS, "targets": targets, "logits": start.tolist(), "base": base.tolist()}
    out |= {"cases": [], "penalties": []}
    weights_n = torch.tensor([w for row in ROWS for w in row])

    for case in CASES:
        logits = start.clone().requires_grad_()
        by_n, by = coefficients(ROWS, case.get("normaliser", "token"))
        loss = (cost(logits, targets, ROWS, case) * by_n).sum() / by
        loss.backward()
        out["cases"].append({"settings": case, "loss": loss.item(), "gradient": logits.grad.tolist()})

    for penalty in PENALTIES:
        logits = start.clone().requires_grad_()
        policy, other = Categorical(logits=logits), Categorical(logits=base)
        mean = lambda each: (each * weights_n).sum() / weights_n.sum()
        loss = mean(cost(logits, targets, ROWS, {}))
        loss = loss - penalty.get("entropy", 0.0) * mean(policy.entropy())
        loss = loss + penalty.get("kl", 0.0) * mean(kl_divergence(policy, other))
        loss.backward()
        told = {"entropy": mean(policy.entropy()).item(), "kl_base": mean(kl_divergence(policy, other)).item()}
        kept = {"settings": penalty, "loss": loss.item(), "told": told, "gradient": logits.grad.tolist()}
        out["penalties"].append(kept)

    # The same smoothing as the trainer's, where all weights are 1.
    flat = torch.tensor([t for row in targets for t in row])
    ours = F.cross_entropy(start, flat, label_smoothing=0.1)
    theirs = LabelSmoother(0.1)({"logits": start}, flat.clone())
    assert torch.allclose(ours, theirs, atol=1e-6), (ours, theirs)

    path = pathlib.Path(__file__).parent / "terms.json"
    path.write_text(json.dumps(out, indent=1) + "\n")
    print(f"{len(out['cases']) + len(out['penalties'])} cases in {path.name}")


main()
