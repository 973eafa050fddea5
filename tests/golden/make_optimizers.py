"""Optimizer trajectories of torch, transformers, lion-pytorch, schedulefree and bitsandbytes.

Writes optimizers.json and optimizers.safetensors: twenty steps on a small problem of a tall matrix, a
wide matrix and a vector, every gradient and parameter recorded.
"""

import numpy as np
import torch
from bitsandbytes.backends.cpu import ops as bnb_cpu
from bitsandbytes.functional import create_dynamic_map
from bitsandbytes.optim import AdamW8bit
from lion_pytorch import Lion
from schedulefree import AdamWScheduleFree
from torch.optim import SGD, Adam, AdamW, Muon
from transformers.optimization import Adafactor

from pico import save, save_json

STEPS = 20
SMALL = {"tall": (6, 4), "wide": (3, 5), "vector": (4,)}
# One block of 256 and a rest, and a vector that stays in f32.
BLOCKS = {"wide": (15, 20), "vector": (4,)}

ADAM = dict(betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0)
# The settings are luthier's; what a reference calls otherwise is renamed below.
CASES = {
    "adamw": ("adamw", dict(ADAM, learning_rate=0.05)),
    "adamw_decay": ("adamw", dict(ADAM, learning_rate=0.05, weight_decay=0.1)),
    "adamw_betas": ("adamw", dict(learning_rate=0.02, betas=[0.4, 0.95], eps=1e-3, weight_decay=0.01)),
    "adam": ("adam", dict(ADAM, learning_rate=0.05)),
    "adam_decay": ("adam", dict(ADAM, learning_rate=0.05, weight_decay=0.1)),
    "adam_betas": ("adam", dict(learning_rate=0.02, betas=[0.8, 0.95], eps=1e-3, weight_decay=0.01)),
    "sgd": ("sgd", dict(learning_rate=0.05)),
    "sgd_decay": ("sgd", dict(learning_rate=0.05, weight_decay=0.1)),
    "sgd_momentum": ("sgd", dict(learning_rate=0.02, momentum=0.9)),
    "sgd_momentum_dampening": (
        "sgd", dict(learning_rate=0.05, momentum=0.9, dampening=0.5, weight_decay=0.02)),
    # torch refuses nesterov together with dampening.
    "sgd_nesterov": ("sgd", dict(learning_rate=0.02, momentum=0.9, nesterov=True, weight_decay=0.02)),
    "adafactor": ("adafactor", dict()),
    "adafactor_warmup": ("adafactor", dict(warmup_init=True, weight_decay=0.1, decay_rate=-0.6)),
    "adafactor_rate": ("adafactor", dict(learning_rate=0.05, weight_decay=0.02, scale_parameter=False)),
    "adafactor_mean": (
        "adafactor", dict(learning_rate=0.05, beta1=0.9, clip_threshold=0.5, eps=[1e-8, 0.5])),
    "lion": ("lion", dict(learning_rate=0.02)),
    "lion_decay": ("lion", dict(learning_rate=0.02, betas=[0.7, 0.95], weight_decay=0.1)),
    "muon": ("muon", dict(
        learning_rate=0.02, weight_decay=0.1, adamw_learning_rate=0.05, adamw_betas=[0.9, 0.95],
        adamw_eps=1e-10)),
    "muon_rms": ("muon", dict(
        learning_rate=0.05, weight_decay=0.0, momentum=0.4, nesterov=False,
        adjust_lr_fn="match_rms_adamw", adamw_learning_rate=0.02)),
    "muon_spectral": ("muon", dict(
        learning_rate=0.05, weight_decay=0.01, momentum=0.8, ns_steps=3, eps=10.0,
        ns_coefficients=[2.0, -1.5, 0.5], adjust_lr_fn="spectral_unclamped",
        adamw_learning_rate=0.02)),
    "schedule_free_adamw": ("schedule_free_adamw", dict(learning_rate=0.05)),
    "schedule_free_adamw_warmup": ("schedule_free_adamw", dict(
        learning_rate=0.1, betas=[0.8, 0.95], eps=1e-4, weight_decay=0.1, warmup_steps=6, r=1.5,
        weight_lr_power=1.0)),
    "adamw_8bit": ("adamw_8bit", dict(ADAM, learning_rate=0.05, min_8bit_size=100)),
    "adamw_8bit_decay": ("adamw_8bit", dict(
        learning_rate=0.05, betas=[0.8, 0.95], eps=1e-4, weight_decay=0.1, min_8bit_size=0)),
}


def nearest_codes(numbers, code, absmax_out, out, blocksize):
    """In place of the CPU library's table of 65536 steps: the nearest code, as by plain operations."""
    flat, codes = numbers.flatten(), out.view(-1)
    for block, at in enumerate(range(0, flat.numel(), blocksize)):
        part = flat[at : at + blocksize]
        absmax_out[block] = part.abs().max()
        scaled = (part * (1 / absmax_out[block])).clamp(-1, 1)
        codes[at : at + blocksize] = (scaled[:, None] - code).abs().argmin(1).to(torch.uint8)


bnb_cpu._quant_blockwise_fp32_direct = nearest_codes


def reference(key, settings, named):
    """The optimizers that together do what `settings` say."""
    settings = dict(settings)
    if key != "adafactor" or "learning_rate" in settings:
        settings["lr"] = settings.pop("learning_rate")
    if "betas" in settings:
        settings["betas"] = tuple(settings["betas"])
    params = list(named.values())
    if key == "adafactor":
        return [Adafactor(params, relative_step="lr" not in settings, **settings)]
    if key == "muon":
        own = {k.removeprefix("adamw_"): settings.pop(k) for k in list(settings) if "adamw_" in k}
        own["lr"] = own.pop("learning_rate")
        own = dict(betas=(0.9, 0.95), eps=1e-10, weight_decay=settings["weight_decay"]) | own
        matrices = [p for p in params if p.ndim == 2]
        return [Muon(matrices, **settings), AdamW([p for p in params if p.ndim != 2], **own)]
    kinds = {"adamw": AdamW, "adam": Adam, "sgd": SGD, "lion": Lion, "adamw_8bit": AdamW8bit,
             "schedule_free_adamw": AdamWScheduleFree}
    return [kinds[key](params, **settings)]


def run(key, settings, shapes, rng):
    """Twenty steps on x·Hx/2 − b·x + sum(x⁴)/40, where x is all parameters in a row."""
    f32 = lambda *shape: torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    n = sum(int(np.prod(shape)) for shape in shapes.values())
    half = f32(n, n) / n**0.5
    # A stiff direction and a nearly flat one.
    h, b = half @ half.T + torch.diag(torch.logspace(-2, 0.5, n)), f32(n)
    named = {name: torch.nn.Parameter(f32(*shape)) for name, shape in shapes.items()}
    optimizers = reference(key, settings, named)
    if key == "schedule_free_adamw":
        optimizers[0].train()
    params, grads = {k: [p.detach().clone()] for k, p in named.items()}, {k: [] for k in named}
    for _ in range(STEPS):
        x = torch.cat([p.flatten() for p in named.values()])
        loss = 0.5 * x @ h @ x - b @ x + (x**4).sum() / 40
        for p in named.values():
            p.grad = None
        loss.backward()
        for k, p in named.items():
            grads[k].append(p.grad.clone())
        for optimizer in optimizers:
            optimizer.step()
        for k, p in named.items():
            params[k].append(p.detach().clone())
    out = {f"{k}.params": torch.stack(v) for k, v in params.items()}
    out |= {f"{k}.grads": torch.stack(v) for k, v in grads.items()}
    if key == "schedule_free_adamw":
        optimizers[0].eval()
        out |= {f"{k}.used": p.detach().clone() for k, p in named.items()}
    return out


if __name__ == "__main__":
    tensors = {
        "codes.signed": create_dynamic_map(signed=True),
        "codes.unsigned": create_dynamic_map(signed=False),
    }
    for case, (key, settings) in CASES.items():
        shapes = BLOCKS if key == "adamw_8bit" else SMALL
        record = run(key, settings, shapes, np.random.default_rng(8))
        tensors |= {f"{case}.{name}": tensor for name, tensor in record.items()}
    save(tensors, "optimizers.safetensors")
    save_json({case: {"key": key, "settings": s} for case, (key, s) in CASES.items()},
              "optimizers.json")
    print("optimizers written")
