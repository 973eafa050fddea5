"""Bottleneck adapters and Compacter of adapter-hub's `adapters` over the pico llama.

Writes hub/<name>/{adapter_config.json, adapter.safetensors, golden.safetensors}. `adapters` needs an
older transformers than everything else here, so make_all.py leaves this script out:

    pip install torch numpy adapters==1.3.0 && python adapter_hub.py
"""

import os

from pico import HERE, columns, fill, forward, make_rows, save

import adapters
import torch
from transformers import LlamaForCausalLM

LENGTHS = [19, 6, 1]
CASES = {
    "seq_bn": adapters.SeqBnConfig(reduction_factor=4, non_linearity="gelu"),
    "double_seq_bn": adapters.DoubleSeqBnConfig(reduction_factor=4),
    "par_bn": adapters.ParBnConfig(reduction_factor=4, scaling="learned"),
    "compacter": adapters.CompacterConfig(reduction_factor=8, non_linearity="gelu_new"),
    "compacter++": adapters.CompacterPlusPlusConfig(
        reduction_factor=2, phm_dim=2, phm_rank=3, leave_out=[0]
    ),
}


def base():
    model = LlamaForCausalLM.from_pretrained("models/llama", attn_implementation="eager")
    adapters.init(model)
    return model.eval()


def make(name, config, seed):
    folder = HERE / "hub" / name
    folder.mkdir(parents=True, exist_ok=True)
    model = base()
    model.add_adapter("mine", config=config)
    model.train_adapter("mine")
    fill([(n, p) for n, p in model.named_parameters() if p.requires_grad], seed, std=0.3)
    model.save_adapter(str(folder), "mine", use_safetensors=True)
    for file in folder.iterdir():
        if file.name not in ("adapter_config.json", "adapter.safetensors"):
            file.unlink()
    (folder / "adapter.safetensors").chmod(0o644)

    # Read back what was written: the golden values belong to the file.
    model = base()
    model.load_adapter(str(folder), use_safetensors=True, set_active=True)
    model.eval()
    rows = make_rows(LENGTHS, seed=seed + 50)
    with torch.no_grad():
        logits, plain = forward(model, rows), forward(base(), rows)
    shift = float((logits - plain).abs().max())
    assert shift > 0.1, shift
    save({**columns(rows), "logits_nv": logits}, folder / "golden.safetensors")
    print(f"{name}: moves logits by {shift:.3f}")


def main():
    os.chdir(HERE)
    for i, (name, config) in enumerate(CASES.items()):
        make(name, config, seed=800 + i)


if __name__ == "__main__":
    main()
