"""Learning-rate schedules of transformers: writes schedules.json."""

import numpy as np
import torch
from transformers import get_scheduler

from pico import save_json

STEPS, WARMUP = 40, 5
SCHEDULES = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.25}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {}),
    ("polynomial", {"lr_end": 0.1, "power": 2.0}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 11}),
    ("cosine_with_min_lr", {"min_lr": 0.2}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"min_lr": 0.2, "warmup_lr_rate": 0.05}),
    ("warmup_stable_decay", {"num_decay_steps": 12, "decay_type": "linear"}),
    ("warmup_stable_decay", {"num_decay_steps": 12, "decay_type": "cosine", "min_lr_ratio": 0.1}),
    ("warmup_stable_decay", {"num_decay_steps": 12, "decay_type": "1-sqrt"}),
    ("warmup_stable_decay", {"num_decay_steps": 10, "num_stable_steps": 15, "warmup_type": "cosine",
                             "min_lr_ratio": 0.05}),
    ("warmup_stable_decay", {"num_decay_steps": 12, "warmup_type": "1-sqrt"}),
    ("reduce_lr_on_plateau", {"factor": 0.5, "patience": 2}),
    ("reduce_lr_on_plateau", {"factor": 0.3, "patience": 1, "threshold": 0.05, "cooldown": 2,
                              "min_lr": 0.02}),
    ("reduce_lr_on_plateau", {"mode": "max", "factor": 0.5, "patience": 3,
                              "threshold_mode": "abs", "threshold": 0.01}),
    ("greedy", {"factor": 0.8, "patience": 1, "min_lr": 0.05, "max_lr": 2.0}),
]


def plateau_metrics():
    """A metric that falls, stalls, falls again and then rises a little."""
    rng = np.random.default_rng(7)
    shape = [3.0 * 0.8 ** min(t, 10) + 0.002 * max(t - 25, 0) for t in range(STEPS)]
    return [round(float(s + 0.05 * rng.standard_normal()), 4) for s in shape]


def schedules():
    out = []
    metrics = plateau_metrics()
    for name, kwargs in SCHEDULES:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = get_scheduler(name, optimizer, WARMUP, STEPS, kwargs)
        by_metric = name in ("reduce_lr_on_plateau", "greedy")
        values = []
        for t in range(STEPS):
            values.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            schedule.step(metrics[t]) if by_metric else schedule.step()
        entry = {"name": name, "learning_rate": 1.0, "warmup_steps": WARMUP, "steps": STEPS,
                 "kwargs": kwargs}
        if by_metric:
            # values[t] is the rate of step t; metrics[t] is told after step t. No warm-up here.
            entry["metrics"] = metrics
        out.append(entry | {"values": values})
    return out


if __name__ == "__main__":
    save_json(schedules(), "schedules.json")
    print("schedules written")
