"""Loads a Hugging Face folder (and an adapter) in transformers and prints what its logits are.

    python load_model.py FOLDER [--adapter DIR] --ids 1,2,3 [--ids 4,5] [--logits OUT.safetensors]

Prints one JSON value: parameter count, dtype, and for each row of ids the sum, the absolute sum,
the best token at every position and a SHA-256 of the f32 logits. Exits 1 when a tensor is missing,
left over or of another shape than the model expects: "loads unchanged" means none of these.
--logits writes `row.<i>` for an exact comparison.
"""

import argparse
import hashlib
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoModelForCausalLM


def adapter_faults(model, folder):
    """Differences between the names and shapes in the file and those PEFT would save."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    found = load_file(os.path.join(folder, "adapter_model.safetensors"))
    wanted = get_peft_model_state_dict(model)
    # PEFT also saves the base weights of targeted embeddings; a file without them is complete.
    base = {k for k in wanted if ".base_layer." in k}
    faults = [f"missing: {k}" for k in sorted(set(wanted) - set(found) - base)]
    faults += [f"left over: {k}" for k in sorted(set(found) - set(wanted))]
    for k in sorted(set(found) & set(wanted)):
        if found[k].shape != wanted[k].shape:
            faults.append(f"{k}: {tuple(found[k].shape)} in the file, {tuple(wanted[k].shape)} wanted")
        elif not torch.equal(found[k].float(), wanted[k].float().cpu()):
            faults.append(f"{k}: not what was loaded")
    return faults


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--adapter")
    p.add_argument("--ids", action="append", default=[])
    p.add_argument("--logits")
    args = p.parse_args()

    model, info = AutoModelForCausalLM.from_pretrained(
        args.folder, dtype=torch.float32, output_loading_info=True)
    faults = [f"{kind}: {name}" for kind, names in info.items() if names for name in
              (names if isinstance(names, (list, set, dict, tuple)) else [names])]
    if args.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, args.adapter)
        faults += adapter_faults(model, args.adapter)
    model.eval()
    rows, tensors = [], {}
    for i, text in enumerate(args.ids):
        ids = [int(x) for x in text.split(",")]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].float().contiguous()
        tensors[f"row.{i}"] = logits
        rows.append({
            "ids": ids,
            "sum": float(logits.double().sum()),
            "abs_sum": float(logits.double().abs().sum()),
            "best": logits.argmax(-1).tolist(),
            "sha256": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
        })
    if args.logits:
        from safetensors.torch import save_file

        save_file(tensors, args.logits)
    print(json.dumps({
        "architecture": type(model.get_base_model() if args.adapter else model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "faults": faults,
        "rows": rows,
    }, indent=2))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
