"""What every peer script does first and last: threads, no network, one JSON line with its memory.

Import it before torch: the libraries read these variables when they are loaded.
"""

import atexit
import importlib.metadata
import json
import os
import resource
import shutil
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def threads(asked=None):
    """Gives torch as many threads as there are cores, or as many as asked for."""
    import torch

    torch.set_num_threads(asked or cores())
    return torch.get_num_threads()


def model(folder, weights):
    """The model in evaluation, and the autocast context that `weights` asks for."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return loaded, torch.autocast("cpu", torch.bfloat16, enabled=weights == "autocast")


def rows(path):
    """Rows of `luthier show --json`: token ids, and a weight for each."""
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def prompt(row):
    """What stands before the first trained token."""
    return row["ids"][:next(i for i, w in enumerate(row["weights"]) if w)]


def scratch():
    """A folder that is gone when the script ends."""
    folder = tempfile.mkdtemp(prefix="luthier-peer-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def versions(*packages):
    return {package: importlib.metadata.version(package) for package in packages}


def answer(fields):
    """Prints the measurement as the last line of standard output."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    fields["peak_rss"] = peak if sys.platform == "darwin" else peak * 1024
    print(json.dumps(fields), flush=True)
