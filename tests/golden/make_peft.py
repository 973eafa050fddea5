"""Adapters of PEFT other than plain LoRA over pico models: logits, merged logits, gradients.

Writes peft/<variant>/{adapter_config.json, adapter_model.safetensors, golden.safetensors}.
"""

import copy
import json
import os
import shutil

from pico import HERE, columns, forward, make_rows, save, save_json, weighted_nll

import numpy as np
import torch
from peft import EvaConfig, IA3Config, LNTuningConfig, LoraConfig, PeftModel, TrainableTokensConfig
from peft import get_peft_model
from peft.utils import get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from make_lora import ALL, LENGTHS

LORA = dict(r=4, lora_alpha=16, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
CAUSAL = dict(task_type="CAUSAL_LM")
LLAMA, BIAS, TIED = "models/llama", "models/llama-bias", "models/qwen2"
PATTERNS = dict(rank_pattern={"q_proj": 2, "down_proj": 6}, alpha_pattern={"q_proj": 3})
TOKENS = [41, 3, 90, 17]


def lora(**over):
    return lambda: LoraConfig(**{**LORA, "target_modules": ALL, **over})


VARIANTS = {
    "dora": (BIAS, lora(use_dora=True, **PATTERNS)),
    "dora-rslora": (LLAMA, lora(use_dora=True, use_rslora=True)),
    "dora-embeddings": (LLAMA, lora(use_dora=True, target_modules=["embed_tokens", "v_proj"])),
    "orthogonal": (LLAMA, lora(init_lora_weights="orthogonal")),
    "eva": (
        LLAMA,
        lora(
            init_lora_weights="eva",
            eva_config=EvaConfig(rho=1.5, tau=0.9),
            target_modules=["q_proj", "up_proj"],
            rank_pattern={"model.layers.0.self_attn.q_proj": 6},
            alpha_pattern={"model.layers.0.self_attn.q_proj": 24},
        ),
    ),
    "pissa": (LLAMA, lora(init_lora_weights="pissa", **PATTERNS)),
    "olora": (LLAMA, lora(init_lora_weights="olora", use_rslora=True, lora_alpha=6)),
    "pissa-dora": (BIAS, lora(init_lora_weights="pissa", use_dora=True)),
    "ia3": (LLAMA, lambda: IA3Config(**CAUSAL)),
    "ia3-bias": (
        BIAS,
        lambda: IA3Config(
            **CAUSAL, target_modules=ALL, feedforward_modules=["o_proj", "down_proj"]
        ),
    ),
    "ia3-whole": (LLAMA, lambda: IA3Config(**CAUSAL, modules_to_save=["lm_head"])),
    "ln_tuning": (LLAMA, lambda: LNTuningConfig(**CAUSAL)),
    "tokens": (LLAMA, lambda: TrainableTokensConfig(**CAUSAL, token_indices=TOKENS)),
    "tokens-tied": (TIED, lambda: TrainableTokensConfig(**CAUSAL, token_indices=TOKENS)),
    "lora-tokens": (LLAMA, lora(trainable_token_indices=TOKENS)),
    "lora-tokens-head": (
        LLAMA,
        lora(trainable_token_indices={"embed_tokens": TOKENS, "lm_head": TOKENS}),
    ),
    "lora-tokens-tied": (TIED, lora(trainable_token_indices=TOKENS)),
    "lora-whole": (BIAS, lora(modules_to_save=["embed_tokens", "lm_head", "model.norm"])),
    "lora-whole-biased": (BIAS, lora(target_modules=["q_proj"], modules_to_save=["up_proj"])),
    "lora-whole-tied": (TIED, lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
}


def base(path):
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()


def learned(model):
    """Parameters that are trained, by the names of the adapter file."""
    on_disk = {}
    for name, tensor in sorted(get_peft_model_state_dict(model).items()):
        on_disk.setdefault((tensor.data_ptr(), tensor.shape), name)
    named = [(on_disk[p.data_ptr(), p.shape], p) for p in model.parameters() if p.requires_grad]
    return sorted(named)


def shake(named, seed):
    """Moves every parameter away from where it began: much for what began at 0, by a fifth else."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in named:
            z = torch.from_numpy(rng.standard_normal(tuple(p.shape), dtype=np.float32))
            if ".lora_" in name and "magnitude" not in name:
                p.add_(0.1 * z)
            else:
                p.mul_(1 + 0.2 * z).add_(0.02 * torch.sign(z))


def tidy(folder):
    (folder / "adapter_model.safetensors").chmod(0o644)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    for key in ["target_modules", "feedforward_modules"]:
        if isinstance(config.get(key), list):
            config[key].sort()
    save_json(config, folder / "adapter_config.json")


def make(variant, path, config, seed):
    folder, initial = HERE / "peft" / variant, HERE / "peft" / "initial"
    torch.manual_seed(seed)
    model = get_peft_model(base(path), config()).eval()
    moves = str(getattr(config(), "init_lora_weights", "")) in ["pissa", "olora"]
    if moves:
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(initial)
        model.peft_config["default"].init_lora_weights = config().init_lora_weights
    shake(learned(model), seed)
    model.save_pretrained(folder)
    tidy(folder)
    # PEFT's conversion leaves DoRA's vector out.
    if moves and "dora" not in variant:
        converted = HERE / "peft" / f"{variant}-converted"
        path_initial = dict(path_initial_model_for_weight_conversion=str(initial))
        model.save_pretrained(converted, **path_initial)
        tidy(converted)
        plain = PeftModel.from_pretrained(base(path), converted).eval()
    if moves:
        shutil.rmtree(initial)

    # Read back what was written: the golden values belong to the file.
    model = PeftModel.from_pretrained(base(path), folder, is_trainable=True).eval()
    rows = make_rows(LENGTHS, seed=seed + 50)
    # So that tokens of their own are read.
    rows[0] = ([*rows[0][0][:4], *TOKENS, *rows[0][0][8:]], *rows[0][1:])
    logits = forward(model, rows)
    if moves and "dora" not in variant:
        with torch.no_grad():
            apart = float((logits - forward(plain, rows)).abs().max())
        assert apart < 1e-4, (variant, apart)
    loss = weighted_nll(logits, rows)
    loss.backward()
    out = {**columns(rows), "logits_nv": logits, "loss": loss.reshape(1)}
    out |= {f"grad.{n}": p.grad for n, p in learned(model)}
    before = forward(base(path), rows)
    merged = copy.deepcopy(model).merge_and_unload()
    with torch.no_grad():
        out["merged_logits_nv"] = forward(merged, rows)
    shift = float((logits - before).abs().max().detach())
    apart = float((logits - out["merged_logits_nv"]).abs().max().detach())
    assert shift > 0.1 and apart < 1e-3 * shift + 1e-4, (variant, shift, apart)
    save(out, folder / "golden.safetensors")
    print(f"{variant}: loss {float(loss.detach()):.6f}, adapter moves logits by {shift:.3f}, "
          f"merged differs by {apart:.1e}, {len(learned(model))} learned")


def main():
    os.chdir(HERE)
    for i, (variant, (path, config)) in enumerate(VARIANTS.items()):
        make(variant, path, config, seed=900 + 10 * i)


if __name__ == "__main__":
    main()
