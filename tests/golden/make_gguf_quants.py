"""Records what the `gguf` package reads from quantised blocks in gguf_quants.safetensors.

pip install gguf safetensors numpy; python make_gguf_quants.py
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

BLOCKS = 3
# Where the half floats of a block lie. Random bytes there would be infinite or not a number.
HALVES = {
    Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}

rng = np.random.default_rng(7)
out = {}
for kind in [Type.F32, Type.F16, Type.BF16]:
    values = rng.normal(size=40).astype(np.float32) * np.logspace(-6, 3, 40).astype(np.float32)
    raw = quantize(values, kind)
    out[f"{kind.name}.raw"] = np.ascontiguousarray(raw).view(np.uint8)
    out[f"{kind.name}.f32"] = dequantize(raw, kind).astype(np.float32)
for kind, halves in HALVES.items():
    _, size = GGML_QUANT_SIZES[kind]
    # Random bytes reach every bit of the layout; the quantiser of the package need not exist.
    raw = rng.integers(0, 256, size=(BLOCKS, size), dtype=np.uint8)
    for at in halves:
        scale = (rng.normal(size=BLOCKS) * 0.1).astype(np.float16)
        raw[:, at:at + 2] = scale.view(np.uint8).reshape(BLOCKS, 2)
    raw = raw.reshape(-1)
    out[f"{kind.name}.raw"] = raw
    out[f"{kind.name}.f32"] = dequantize(raw, kind)
assert all(np.isfinite(v).all() for k, v in out.items() if k.endswith(".f32"))
save_file(out, str(Path(__file__).with_name("gguf_quants.safetensors")))
