"""LoRA adapters of PEFT over the pico llama: logits, merged logits, gradients, ten pinned losses.

Writes lora/{adapter_config.json, adapter_model.safetensors, golden.safetensors, run.safetensors}
and the same without a run in lora/<variant>/.
"""

import copy
import json
import os

from pico import HERE, columns, fill, forward, make_rows, run_batches, save, save_json
from pico import ten_steps, weighted_nll

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# Relative on purpose: PEFT writes it into adapter_config.json.
BASES = {"bias": "models/llama-bias"}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMMON = dict(r=4, lora_alpha=16, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
VARIANTS = {
    "": dict(target_modules=ALL),
    "rslora": dict(target_modules=ALL, use_rslora=True),
    "patterns": dict(
        target_modules=ALL,
        rank_pattern={"q_proj": 2, "model.layers.1.mlp.down_proj": 6},
        alpha_pattern={"q_proj": 3, "layers.0.self_attn.o_proj": 10, "model.layers.1.mlp.down_proj": 5},
    ),
    "embeddings": dict(target_modules=["embed_tokens", "lm_head", "v_proj"]),
    # Over a base with biases: PEFT refuses to merge a LoRA bias into a linear without one.
    "bias": dict(target_modules=ALL, lora_bias=True),
    "layers": dict(target_modules=["q_proj", "up_proj"], layers_to_transform=[1]),
    "regex": dict(target_modules=r".*\.layers\.0\.self_attn\.(q|v)_proj|.*\.1\.mlp\.gate_proj"),
}
LENGTHS = [23, 9, 1]


def base(variant=""):
    path = BASES.get(variant, "models/llama")
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()


def learned(model):
    """Parameters that are trained, by the names of the adapter file."""
    named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    on_disk = get_peft_model_state_dict(model)
    assert set(named) <= set(on_disk), set(named) - set(on_disk)
    return sorted(named.items())


def make(variant, over, seed):
    folder = HERE / "lora" / variant
    model = get_peft_model(base(variant), LoraConfig(**{**COMMON, **over})).eval()
    # Random non-zero A and B: at PEFT's own initial values half of what can go wrong is invisible.
    fill([(n, p) for n, p in learned(model)], seed, std=0.1)
    model.save_pretrained(folder)
    (folder / "adapter_model.safetensors").chmod(0o644)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    save_json(config, folder / "adapter_config.json")

    # Read back what was written: the golden values belong to the file.
    model = PeftModel.from_pretrained(base(variant), folder, is_trainable=True).eval()
    rows = make_rows(LENGTHS, seed=seed + 50)
    logits = forward(model, rows)
    loss = weighted_nll(logits, rows)
    loss.backward()
    out = {**columns(rows), "logits_nv": logits, "loss": loss.reshape(1)}
    out |= {f"grad.{n}": p.grad for n, p in learned(model)}
    plain = forward(base(variant), rows)
    merged = copy.deepcopy(model).merge_and_unload()
    with torch.no_grad():
        out["merged_logits_nv"] = forward(merged, rows)
    shift = float((logits - plain).abs().max().detach())
    apart = float((logits - out["merged_logits_nv"]).abs().max().detach())
    assert shift > 0.1 and apart < 1e-3 * shift + 1e-4, (folder, shift, apart)
    save(out, folder / "golden.safetensors")
    print(f"{folder.name}: loss {float(loss.detach()):.6f}, adapter moves logits by {shift:.3f}, "
          f"merged differs by {apart:.1e}")
    return model


def main():
    os.chdir(HERE)
    for i, (name, over) in enumerate(VARIANTS.items()):
        make(name, over, seed=400 + i)

    model = PeftModel.from_pretrained(base(), HERE / "lora", is_trainable=True).eval()
    named = learned(model)
    batches = run_batches(seed=500)
    out = ten_steps(model, named, batches, lr=1e-2, weight_decay=0.01)
    print("lora run:", [round(x, 6) for x in out["losses"].tolist()])
    for t, rows in enumerate(batches):
        out |= columns(rows, f"step.{t}.")
    out |= {f"final.{n}": p for n, p in named}
    save(out, "lora/run.safetensors")
    names = set(load_file(HERE / "lora/adapter_model.safetensors"))
    assert names == {n for n, _ in named}


if __name__ == "__main__":
    main()
