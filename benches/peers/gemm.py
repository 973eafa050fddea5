"""Matrix products in torch: GFLOP/s of a linear layer's forward product and of its input gradient.

    python gemm.py [--shapes 256x576x576,…] [--seconds 0.3]

A shape is rows × out × in of the layer. One JSON line: {"products": [{"op", "precision", "m", "n", "k",
"gflops"}]}; for both `fwd`, x·Wᵀ, and `dx`, dy·W, m is rows, n out, k in, as in luthier's own bench.
"""

import argparse
import statistics
import time

import setting

import torch
import torch.nn.functional as F

SHAPES = [(m, o, i) for m in (256, 2048) for o, i in ((576, 576), (1536, 576), (576, 1536))]
SHAPES.append((2048, 2048, 2048))


def gflops(work, flop, seconds):
    """The median of single calls, after a warm-up of a tenth of the time."""
    taken, begun = [], time.perf_counter()
    while True:
        at = time.perf_counter()
        work()
        now = time.perf_counter()
        if now - begun > seconds * 0.1:
            taken.append(now - at)
        if now - begun > seconds and len(taken) >= 5:
            return flop / statistics.median(taken) / 1e9


@torch.no_grad()
def main():
    p = argparse.ArgumentParser()
    p.add_argument("--shapes")
    p.add_argument("--seconds", type=float, default=0.3, help="per product")
    p.add_argument("--threads", type=int)
    a = p.parse_args()
    threads = setting.threads(a.threads)
    shapes = SHAPES
    if a.shapes:
        shapes = [tuple(map(int, shape.split("x"))) for shape in a.shapes.split(",")]
    torch.manual_seed(0)
    products = []
    for precision, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        for rows, out, width in shapes:
            weight = torch.randn(out, width).to(dtype)
            x, dy = torch.randn(rows, width).to(dtype), torch.randn(rows, out).to(dtype)
            flop = 2.0 * rows * out * width
            for op, work in (("fwd", lambda: F.linear(x, weight)), ("dx", lambda: torch.mm(dy, weight))):
                shape = {"m": rows, "n": out, "k": width}
                rate = gflops(work, flop, a.seconds)
                products.append({"op": op, "precision": precision, **shape, "gflops": rate})
    setting.answer({"peer": setting.versions("torch"), "threads": threads, "products": products})


if __name__ == "__main__":
    main()
