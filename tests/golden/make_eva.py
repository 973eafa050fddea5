"""EVA of PEFT over the pico llama: components, ranks, and what went into every module.

Writes eva.safetensors. `exact.*` is `get_eva_state_dict` with its incremental PCA in f64 and whole
decompositions, `random.*` as it comes (randomised ones, in f32). `r` is 4 with rho 2, and 3 with rho 1.
"""

import os

from pico import HERE, VOCAB, save

import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora import eva
from peft.tuners.lora.config import EvaConfig
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCHES, ROWS, LENGTH = 6, 4, 9


class Exact(eva.IncrementalPCA):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "lowrank": False, "lowrank_seed": None})

    def partial_fit(self, X, check_input=True):
        return super().partial_fit(X.double(), check_input)


def make_batches():
    """Equal lengths, so that nothing is padded; about a third of the tokens carries no label."""
    rng = np.random.default_rng(700)
    batches = []
    for _ in range(BATCHES):
        ids = torch.from_numpy(rng.integers(0, VOCAB, (ROWS, LENGTH)))
        labels = torch.where(torch.from_numpy(rng.random((ROWS, LENGTH)) < 0.3), -100, ids)
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return batches


def base():
    return AutoModelForCausalLM.from_pretrained("models/llama", attn_implementation="eager").eval()


def inputs(model, batches):
    """What goes into each module, batch by batch; of modules with one input the first."""
    out, seen = {}, {}
    wanted = [n for n, _ in model.named_modules() if n.split(".")[-1] in TARGETS]
    for name in wanted:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: x[0]}))
    for k, batch in enumerate(batches):
        seen.clear()
        with torch.no_grad():
            model(**batch)
        for name in wanted:
            if name.split(".")[-1] not in ("k_proj", "v_proj", "up_proj"):
                out[f"input.{k}.{name}"] = seen[name].reshape(-1, seen[name].shape[-1]).float()
    return out


def run(batches, r, rho, kind):
    plain = eva.IncrementalPCA
    eva.IncrementalPCA = Exact if kind == "exact" else plain
    count = 0

    def forward(model, batch):
        nonlocal count
        count += 1
        return model(**batch)

    config = LoraConfig(
        r=r, target_modules=TARGETS, init_lora_weights="eva", eva_config=EvaConfig(rho=float(rho))
    )
    found = eva.get_eva_state_dict(
        base(), batches, peft_config=config, forward_fn=forward, show_progress_bar=False
    )
    eva.IncrementalPCA = plain
    out = {f"{kind}.{r}.batches": torch.tensor([count - 1.0])}
    for name, components in found.items():
        out[f"{kind}.{r}.rank.{name}"] = torch.tensor([float(len(components))])
        if len(components):
            out[f"{kind}.{r}.components.{name}"] = components.float()
    ranks = [len(c) for c in found.values()]
    assert sum(ranks) == r * len(found) and max(ranks) <= r * rho, ranks
    print(f"eva {kind} r={r} rho={rho}: {count - 1} batches, ranks {ranks}")
    return out


def main():
    os.chdir(HERE)
    batches = make_batches()
    weights = torch.stack([(b["labels"] != -100).reshape(-1).float() for b in batches])
    out = {"weights": weights} | inputs(base(), batches)
    for r, rho in [(4, 2), (3, 1)]:
        for kind in ["exact", "random"]:
            out |= run(batches, r, rho, kind)
    save(out, "eva.safetensors")


if __name__ == "__main__":
    main()
