"""Losses of pairs and their gradients by TRL, for crates/loss/tests/preferences.rs.

    python make_preferences.py

Calls TRL's own loss code on a fake model that returns given log-probabilities: `DPOTrainer._compute_loss`,
`CPOTrainer.cpo_loss` and `ORPOTrainer.odds_ratio_loss`. Writes golden/preferences.json.
"""

import collections
import json
import pathlib
import types

import torch
from accelerate import Accelerator
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

LENGTHS = [[3, 5], [1, 2], [7, 4]]
DPO = [
    dict(),
    dict(beta=0.5),
    dict(loss_type="hinge"),
    dict(loss_type="ipo", beta=0.3),
    dict(loss_type="exo_pair", label_smoothing=1e-3, beta=0.4),
    dict(loss_type="nca_pair"),
    dict(loss_type="robust", label_smoothing=0.1),
    dict(loss_type="bco_pair", beta=0.7),
    dict(loss_type="sppo_hard", beta=0.4),
    dict(loss_type="apo_zero"),
    dict(loss_type="apo_down"),
    dict(loss_type="discopop", beta=0.05),
    dict(loss_type="sigmoid_norm", beta=0.9),
    dict(f_divergence_type="forward_kl"),
    dict(f_divergence_type="js_divergence", beta=1.5),
    dict(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.5),
    dict(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1.4, loss_type="ipo"),
    dict(loss_type=["sigmoid", "bco_pair", "apo_zero"], loss_weights=[0.8, 0.2, 1.5]),
]
CPO = [
    dict(),
    dict(label_smoothing=0.2, beta=0.4),
    dict(loss_type="hinge"),
    dict(loss_type="ipo", beta=0.3),
    dict(loss_type="simpo", beta=2.0, simpo_gamma=1.0),
    dict(loss_type="simpo", beta=2.0, simpo_gamma=0.5, alpha=0.25),
]
ORPO = [dict(), dict(beta=0.6)]


class Fake(torch.nn.Module):
    def __init__(self, logps):
        super().__init__()
        self.logps = logps

    def forward(self, **_):
        flat = torch.zeros_like(self.logps)
        return types.SimpleNamespace(
            log_probs=self.logps, entropy=flat, mean_logits=flat, is_top1=flat.bool(), log_sum_sq_probs=flat
        )


def dpo(settings, logps, mask, reference):
    """All pairs at once: chosen rows, then rejected ones, as TRL lays them."""
    given = dict(beta=0.1, label_smoothing=0.0, f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5)
    given |= settings
    types_ = given.pop("loss_type", "sigmoid")
    types_ = [types_] if isinstance(types_, str) else types_
    weights = given.pop("loss_weights", [1.0] * len(types_))
    fake = types.SimpleNamespace(
        **given,
        model=Fake(logps),
        accelerator=Accelerator(cpu=True),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        loss_types=types_,
        loss_weights=weights,
        use_weighting=False,
        args=types.SimpleNamespace(discopop_tau=0.05),
        _metrics={"train": collections.defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[:, 0],
        "ref_rejected_logps": reference[:, 1],
    }
    return DPOTrainer._compute_loss(fake, fake.model, inputs, False)


def drawn():
    torch.manual_seed(7)
    rows = [[-torch.rand(n) * 3 - 0.05 for n in pair] for pair in LENGTHS]
    reference = torch.stack([torch.stack([r.sum() + torch.randn(()) for r in pair]) for pair in rows])
    return rows, reference


def main():
    out = {"lengths": LENGTHS, "cases": []}
    rows, reference = drawn()
    out["logps"] = [[r.tolist() for r in pair] for pair in rows]
    out["references"] = reference.tolist()
    order = [pair[0] for pair in rows] + [pair[1] for pair in rows]
    width = max(len(r) for r in order) + 2
    mask = torch.zeros(len(order), width, dtype=torch.long)
    for i, r in enumerate(order):
        mask[i, 2 : 2 + len(r)] = 1

    def keep(key, settings, loss_of):
        leaves = [r.clone().requires_grad_() for r in order]
        loss = loss_of(leaves)
        loss.backward()
        n = len(rows)
        gradient = [[leaves[i].grad.tolist(), leaves[i + n].grad.tolist()] for i in range(n)]
        out["cases"].append({"key": key, "settings": settings, "loss": loss.item(), "gradient": gradient})

    def padded(leaves):
        rows = [torch.nn.functional.pad(r, (1, width - 2 - len(r))) for r in leaves]
        return torch.stack(rows)

    for settings in DPO:
        keep("dpo", settings, lambda leaves: dpo(settings, padded(leaves), mask, reference))
    for settings in CPO:
        given = dict(beta=0.1, label_smoothing=0.0, loss_type="sigmoid", simpo_gamma=0.5, alpha=0.0) | settings
        fake = types.SimpleNamespace(**given, accelerator=types.SimpleNamespace(device="cpu"))

        def loss_of(leaves):
            mean = given["loss_type"] in ["ipo", "simpo"]
            logps = torch.stack([r.mean() if mean else r.sum() for r in leaves])
            return CPOTrainer.cpo_loss(fake, *logps.chunk(2))[0].mean()

        keep("cpo", settings | {"cpo_alpha": 0.0}, loss_of)
    for settings in ORPO:
        fake = types.SimpleNamespace(**(dict(beta=0.1) | settings), accelerator=types.SimpleNamespace(device="cpu"))

        def loss_of(leaves):
            logps = torch.stack([r.mean() for r in leaves])
            odds = ORPOTrainer.odds_ratio_loss(fake, *logps.chunk(2))[0].mean()
            return -logps.chunk(2)[0].mean() - odds

        keep("orpo", settings, loss_of)
    path = pathlib.Path(__file__).parent / "preferences.json"
    path.write_text(json.dumps(out, indent=1) + "\n")
    print(f"{len(out['cases'])} cases in {path.name}")


main()
