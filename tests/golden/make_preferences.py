"""Losses of pairs and their gradients by TRL, for crates/loss/tests/preferences.rs.

    python make_preferences.py

Calls TRL's own loss code on a fake model that returns given log-probabilities: `DPOTrainer._compute_loss`,
`KTOTrainer._compute_loss`, `CPOTrainer.cpo_loss` and `ORPOTrainer.odds_ratio_loss`; `BCOTrainer.bco_loss` and
`RunningMoments` of TRL 0.23.1, the last with that trainer, whose sources are looked for in the folder that
BCO_SOURCES names, or fetched; and `RewardTrainer.compute_loss` on given
rewards. Writes golden/preferences.json.
"""

import ast
import os
import subprocess
import sys
import tempfile

import collections
import json
import pathlib
import types

import torch
from accelerate import Accelerator
from trl import DPOTrainer, KTOTrainer, RewardTrainer
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
    dict(loss_type="aot", beta=0.4, label_smoothing=0.1),
    dict(loss_type="aot_unpaired", beta=0.3),
    dict(loss_type=["aot", "sigmoid", "aot_unpaired"], loss_weights=[0.5, 1.0, 2.0]),
    dict(ld_alpha=0.4, beta=0.6),
    dict(use_weighting=True, beta=0.5),
    dict(loss_type="bco_pair", use_weighting=True, ld_alpha=0.7),
]
KTO = [
    dict(),
    dict(beta=0.6, desirable_weight=1.3, undesirable_weight=0.7),
    dict(loss_type="apo_zero_unpaired", beta=0.4, undesirable_weight=1.5),
]
BCO = [dict(), dict(beta=0.7)]
REWARD = [dict(), dict(center_rewards_coefficient=0.3), dict(margins=[0.5, 0.0, 1.5])]
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
    def __init__(self, logps, squares=None):
        super().__init__()
        self.logps = logps
        self.squares = squares

    def forward(self, **_):
        flat = torch.zeros_like(self.logps)
        return types.SimpleNamespace(
            log_probs=self.logps, entropy=flat, mean_logits=flat, is_top1=flat.bool(), log_sum_sq_probs=flat if self.squares is None else self.squares
        )


def dpo(settings, logps, mask, reference, squares, own):
    """All pairs at once: chosen rows, then rejected ones, as TRL lays them."""
    given = dict(beta=0.1, label_smoothing=0.0, f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5)
    given |= settings
    types_ = given.pop("loss_type", "sigmoid")
    types_ = [types_] if isinstance(types_, str) else types_
    weights = given.pop("loss_weights", [1.0] * len(types_))
    ld_alpha = given.pop("ld_alpha", None)
    weighting = given.pop("use_weighting", False)
    if ld_alpha is not None:
        # What the reference says of all tokens, in equal parts, is weighed as the policy's is.
        shared = [min(len(c), len(r)) for c, r in own]
        part = lambda i, side: shared[i] + ld_alpha * (len(own[i][side]) - shared[i])
        scale = [[part(i, side) / len(own[i][side]) for side in (0, 1)] for i in range(len(own))]
        reference = reference * torch.tensor(scale)
    fake = types.SimpleNamespace(
        **given,
        model=Fake(logps, squares),
        accelerator=Accelerator(cpu=True),
        aux_loss_enabled=False,
        ld_alpha=ld_alpha,
        precompute_ref_logps=True,
        loss_types=types_,
        loss_weights=weights,
        use_weighting=weighting,
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


def kto(settings, logps, kl_logps, labels, reference, kl_reference):
    given = dict(beta=0.1, loss_type="kto", desirable_weight=1.0, undesirable_weight=1.0) | settings

    class Both(Fake):
        """The mismatched rows are asked for first, with a mark as input."""

        def forward(self, input_ids, **_):
            self.logps = kl_logps if input_ids[0, 0] == 7 else logps
            return super().forward()

    fake = types.SimpleNamespace(
        **given,
        model=Both(logps),
        accelerator=Accelerator(cpu=True),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=given["loss_type"] == "kto",
        args=types.SimpleNamespace(),
        _metrics={"train": collections.defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    fake._compute_kl_logps = types.MethodType(KTOTrainer._compute_kl_logps, fake)
    ones = torch.ones(len(labels), logps.shape[1] + 1, dtype=torch.long)
    inputs = {
        "input_ids": ones,
        "attention_mask": ones,
        "completion_mask": ones,
        "KL_input_ids": 7 * ones,
        "KL_attention_mask": ones,
        "KL_completion_mask": ones,
        "label": torch.tensor(labels),
        "ref_logps": reference,
        "ref_KL_logps": kl_reference,
    }
    loss = KTOTrainer._compute_loss(fake, fake.model, inputs, False)
    return loss, fake._metrics["train"]["kl"][0]


def bco_sources():
    """The function and the class out of their files, whose other imports this TRL does not have."""
    found = os.environ.get("BCO_SOURCES") or tempfile.mkdtemp()
    folder = pathlib.Path(found) / "trl" / "trainer"
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", found, "--no-deps", "trl==0.23.1"]
        subprocess.run(pip, check=True)
    found = {}
    for file, name in [("bco_trainer.py", "bco_loss"), ("utils.py", "RunningMoments")]:
        tree = ast.parse((folder / file).read_text())
        node = next(n for n in ast.walk(tree) if getattr(n, "name", None) == name)
        if name == "RunningMoments":
            node.body = [n for n in node.body if not isinstance(n, ast.FunctionDef) or n.name == "update"]
        scope = {"torch": torch, "F": torch.nn.functional, "Optional": __import__("typing").Optional}
        scope |= {"dataclass": __import__("dataclasses").dataclass, "Accelerator": Accelerator}
        exec(compile(ast.Module([node], []), file, "exec"), scope)
        found[name] = scope[name]
    return found


def drawn():
    torch.manual_seed(7)
    rows = [[-torch.rand(n) * 3 - 0.05 for n in pair] for pair in LENGTHS]
    reference = torch.stack([torch.stack([r.sum() + torch.randn(()) for r in pair]) for pair in rows])
    return rows, reference


def unpaired():
    """Five rows and as many mismatched ones; sums over tokens are what counts."""
    torch.manual_seed(11)
    labels, lengths = [True, False, False, True, True], [3, 1, 6, 2, 4]
    draw = lambda n: -torch.rand(n) * 3 - 0.05
    own, kl = [draw(n) for n in lengths], [draw(n) for n in lengths[-1:] + lengths[:-1]]
    near = lambda rows: torch.stack([r.sum() + torch.randn(()) - 0.8 for r in rows])
    reference, kl_reference = near(own), near(kl)
    out = {"labels": labels, "logps": [r.tolist() for r in own], "kl_logps": [r.tolist() for r in kl]}
    out |= {"references": reference.tolist(), "kl_references": kl_reference.tolist(), "cases": []}
    padded = lambda rows: torch.stack([torch.nn.functional.pad(r, (0, 6 - len(r))) for r in rows])

    def keep(key, settings, loss_of):
        leaves = [r.clone().requires_grad_() for r in own]
        loss, told = loss_of(leaves)
        loss.backward()
        gradient = [leaf.grad.tolist() for leaf in leaves]
        out["cases"].append({"key": key, "settings": settings, "loss": loss.item(), "told": told, "gradient": gradient})

    for settings in KTO:
        of = lambda leaves: kto(settings, padded(leaves), padded(kl), labels, reference, kl_reference)
        keep("kto", settings, of)
    sources = bco_sources()
    for settings in BCO:

        def of(leaves):
            running = sources["RunningMoments"](types.SimpleNamespace(use_distributed=False))
            fake = types.SimpleNamespace(**(dict(beta=0.1) | settings), running=running, match_underlying_distribution=False)
            sums, wanted = torch.stack([r.sum() for r in leaves]), torch.tensor(labels)
            parts = [sums[wanted], sums[~wanted], reference[wanted], reference[~wanted]]
            losses, _, _, delta = sources["bco_loss"](fake, *parts, None, None)
            return losses.nanmean(), delta.item()

        keep("bco", settings, of)
    return out


def rewards():
    given = [[0.7, -0.2], [-1.1, 0.4], [2.0, 1.7]]
    out = {"rewards": given, "cases": []}
    for settings in REWARD:
        given_ = dict(settings)
        margins = given_.pop("margins", None)
        leaf = torch.tensor(given, requires_grad=True)
        model = lambda **_: types.SimpleNamespace(logits=leaf.T.reshape(-1, 1))
        fake = types.SimpleNamespace(
            model=types.SimpleNamespace(training=True),
            args=types.SimpleNamespace(**(dict(center_rewards_coefficient=None) | given_)),
            accelerator=Accelerator(cpu=True),
            _metrics={"train": collections.defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )
        inputs = {"attention_mask": torch.ones(6, 1)} | ({"margin": torch.tensor(margins)} if margins else {})
        loss = RewardTrainer.compute_loss(fake, model, inputs)
        loss.backward()
        case = {"settings": given_, "margins": margins, "loss": loss.item(), "gradient": leaf.grad.tolist()}
        out["cases"].append(case)
    return out


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

    squares = [-torch.rand(len(r)) * 2 for r in order]
    out["squares"] = [[squares[i].tolist(), squares[i + len(rows)].tolist()] for i in range(len(rows))]
    for settings in DPO:
        keep("dpo", settings, lambda leaves: dpo(settings, padded(leaves), mask, reference, padded(squares), rows))
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
    out["unpaired"] = unpaired()
    out["rewards"] = rewards()
    path = pathlib.Path(__file__).parent / "preferences.json"
    path.write_text(json.dumps(out, indent=1) + "\n")
    print(f"{len(out['cases'])} cases in {path.name}")


main()
