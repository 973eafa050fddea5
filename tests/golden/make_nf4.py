"""Records how bitsandbytes quantises weights to NF4, without and with double quantisation, in nf4.safetensors.

pip install bitsandbytes torch safetensors; python make_nf4.py
"""

from pathlib import Path

import torch
from bitsandbytes import functional as bnb
from safetensors.torch import save_file

torch.manual_seed(5)
torch.set_num_threads(1)
# 301 blocks, the last of 34 numbers, and 2 blocks of their scales; scales over four powers of ten,
# so that small ones reach the finest codes.
n = 300 * 64 + 34
weights = torch.randn(n) * torch.logspace(-4, 0, 301).repeat_interleave(64)[:n]

packed, plain = bnb.quantize_4bit(weights, blocksize=64, quant_type="nf4", compress_statistics=False)
again, double = bnb.quantize_4bit(weights, blocksize=64, quant_type="nf4", compress_statistics=True)
assert torch.equal(packed, again) and double.state2.blocksize == 256
scales = bnb.dequantize_blockwise(double.absmax, double.state2) + double.offset
save_file({
    "weights": weights,
    "code": plain.code,
    "dynamic": double.state2.code,
    "packed": packed.flatten().contiguous(),
    "scales": plain.absmax,
    "double.codes": double.absmax,
    "double.largest": double.state2.absmax,
    "double.mean": double.offset.reshape(1),
    "double.scales": scales,
    "plain": bnb.dequantize_4bit(packed, plain).flatten()[-2000:].clone(),
    "double": bnb.dequantize_4bit(packed, double).flatten()[-2000:].clone(),
}, str(Path(__file__).with_name("nf4.safetensors")))
