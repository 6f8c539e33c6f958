"""Writes golden.bin: a few blocks of every ggml format and the floats that the Python package `gguf` reads from them.

Run in an environment with numpy and gguf:  python make.py
One record for each format, little endian: ggml id, bytes, values (three u32), the blocks, the values (f32).
Blocks are random bytes, with half-precision scales drawn from a normal range so that no value is infinite.
"""

import pathlib
import struct

import gguf
import numpy as np

T = gguf.GGMLQuantizationType
# Bytes of a block at which a half-precision number stands.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}

rng = np.random.default_rng(20261123)
out = bytearray()


def record(kind, blocks, values):
    values = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
    data = blocks.tobytes()
    out.extend(struct.pack("<III", int(kind), len(data), values.size) + data + values.tobytes())


for kind, halves in HALVES.items():
    length, size = gguf.GGML_QUANT_SIZES[kind]
    count = 11 if length == 32 else 3
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in halves:
        scale = rng.normal(0, 0.05, (count, 1)).astype("<f2")
        blocks[:, at : at + 2] = scale.view(np.uint8)
    record(kind, blocks, gguf.quants.dequantize(blocks, kind))

# The package has no reader for Q8_K: f32 scale, 256 signed bytes, 16 sums that are not needed.
blocks = rng.integers(0, 256, (3, 292), dtype=np.uint8)
scale = rng.normal(0, 0.05, (3, 1)).astype("<f4")
blocks[:, :4] = scale.view(np.uint8)
record(T.Q8_K, blocks, scale * blocks[:, 4:260].view(np.int8).astype(np.float32))

floats = rng.normal(0, 3, 64).astype("<f4")
record(T.F32, floats, floats)
record(T.F16, floats.astype("<f2"), floats.astype("<f2").astype("<f4"))
brain = (floats.view("<u4") >> 16).astype("<u2")
record(T.BF16, brain, (brain.astype("<u4") << 16).view("<f4"))

pathlib.Path(__file__).with_name("golden.bin").write_bytes(out)
