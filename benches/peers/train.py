"""Fine-tuning with TRL and PEFT: one run, one JSON line.

Rows are token ids with a 0/1 weight per token, one JSON object a line (`luthier show --json` gives
them), taken in the file's order, `--batch` rows per optimizer step. The first step is a warm-up:
its loss counts, its time does not.

    python train.py --base FOLDER --rows ROWS.jsonl --steps 20 --batch 16 [--weights f32|bf16|autocast]
"""

import argparse
import json
import math
import time

import setting

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--base", required=True, help="Hugging Face folder of the model")
    p.add_argument("--rows", required=True)
    p.add_argument("--steps", type=int, required=True)
    p.add_argument("--batch", type=int, required=True, help="rows per optimizer step")
    p.add_argument("--micro", type=int, help="rows per forward pass [default: --batch]")
    p.add_argument("--weights", choices=["f32", "bf16", "autocast"], default="f32")
    p.add_argument("--layout", choices=["padded", "packed"], default="padded")
    p.add_argument("--loss", choices=["trl", "logits"], default="trl",
                   help="TRL's own loss in chunks, or the one of transformers from full logits")
    p.add_argument("--full", action="store_true", help="train every weight instead of LoRA")
    p.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    p.add_argument("--lr", type=float, default=2e-4)
    p.add_argument("--threads", type=int)
    return p.parse_args()


def dataset(path, count):
    rows = []
    with open(path) as lines:
        for line in lines:
            row = json.loads(line)
            labels = [i if w else -100 for i, w in zip(row["ids"], row["weights"])]
            # Nothing comes before the first token, so nothing predicts it; it must not count either.
            labels[0] = -100
            rows.append({"input_ids": row["ids"], "labels": labels})
            if len(rows) == count:
                return Dataset.from_list(rows)
    raise SystemExit(f"{path}: {len(rows)} rows, but {count} are needed")


class Clock(TrainerCallback):
    """Seconds of every optimizer step, data loading included."""

    def __init__(self):
        self.at = []

    def on_train_begin(self, *_, **__):
        self.at.append(time.perf_counter())

    def on_step_end(self, *_, **__):
        self.at.append(time.perf_counter())


class Recorded(SFTTrainer):
    """SFTTrainer that keeps the unrounded loss of every step."""

    full_logits = False
    losses = None

    def training_step(self, *given, **named):
        loss = super().training_step(*given, **named)
        self.losses.append(loss.item())
        return loss

    def compute_loss(self, model, inputs, **named):
        if self.full_logits:
            inputs["use_cache"] = False
            return Trainer.compute_loss(self, model, inputs, **named)
        return super().compute_loss(model, inputs, **named)


def main():
    a = arguments()
    threads = setting.threads(a.threads)
    micro = a.micro or a.batch
    assert a.batch % micro == 0, "--micro must divide --batch"
    dtype = torch.bfloat16 if a.weights == "bf16" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(a.base)
    model = AutoModelForCausalLM.from_pretrained(a.base, dtype=dtype)
    rows = dataset(a.rows, a.steps * a.batch)
    clock = Clock()
    config = SFTConfig(
        output_dir=setting.scratch(), use_cpu=True, bf16=a.weights == "autocast", fp16=False,
        per_device_train_batch_size=micro, gradient_accumulation_steps=a.batch // micro,
        max_steps=a.steps, learning_rate=a.lr, lr_scheduler_type="constant", warmup_steps=0,
        weight_decay=0.0, max_grad_norm=1.0, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8,
        train_sampling_strategy="sequential", padding_free=a.layout == "packed", max_length=None,
        gradient_checkpointing=a.recompute, logging_strategy="no", save_strategy="no",
        report_to="none", disable_tqdm=True, seed=0, dataloader_pin_memory=False,
    )
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM")
    trainer = Recorded(
        model=model, args=config, train_dataset=rows, processing_class=tokenizer,
        peft_config=None if a.full else lora, callbacks=[clock],
    )
    trainer.losses, trainer.full_logits = [], a.loss == "logits"
    trainer.train()

    per_step = a.batch // micro
    losses = [sum(trainer.losses[i:i + per_step]) for i in range(0, len(trainer.losses), per_step)]
    assert len(losses) == a.steps and all(map(math.isfinite, losses)), losses
    seconds = [b - a for a, b in zip(clock.at, clock.at[1:])]
    # As luthier counts: positions that predict a token, one less than the row has tokens.
    lengths = [len(ids) - 1 for ids in rows["input_ids"]]
    setting.answer({
        "peer": setting.versions("torch", "transformers", "peft", "trl"),
        "setting": name(a, micro), "threads": threads, "losses": losses, "step_seconds": seconds,
        "rows_per_step": a.batch,
        "step_tokens": [sum(lengths[i:i + a.batch]) for i in range(0, len(lengths), a.batch)],
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    })


def name(a, micro):
    parts = [a.weights, a.layout, f"{micro} rows a pass"]
    parts += ["full logits"] if a.loss == "logits" else []
    parts += ["recomputed activations"] if a.recompute else []
    return ", ".join(parts)


if __name__ == "__main__":
    main()
