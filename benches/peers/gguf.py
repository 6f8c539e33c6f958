"""What one step of a model must read and multiply, counted from the tensor table of its GGUF file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
import dataclasses
import math
import struct

# Type id -> (values in a block, bytes of a block), from ggml's type table.
TYPES = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    30: (1, 2),  # BF16
}
# Metadata value type -> bytes of one value; 8 is a string, 9 an array.
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@dataclasses.dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple
    type: int

    @property
    def bytes(self):
        values, size = TYPES[self.type]
        return math.prod(self.shape) // values * size


@dataclasses.dataclass(frozen=True)
class Work:
    """Without attention, norms and the row of the input embedding, which are small beside the matrices."""

    bytes_per_step: int
    """Bytes of all matrices, output included: read once in a decode step, whatever the batch."""
    macs_per_decoded: int
    """Multiply-adds for a token that is generated: the output matrix is applied to it."""
    macs_per_prompt: int
    """Multiply-adds for a token of a prompt: only the last one needs the output matrix, which is left out."""


class _Reader:
    def __init__(self, file):
        self.file = file

    def number(self, letter):
        format = "<" + letter
        return struct.unpack(format, self._bytes(struct.calcsize(format)))[0]

    def text(self):
        return self._bytes(self.number("Q")).decode()

    def skip_value(self, kind):
        if kind == STRING:
            self._bytes(self.number("Q"))
        elif kind == ARRAY:
            of, count = self.number("I"), self.number("Q")
            if of in SCALARS:
                self._bytes(SCALARS[of] * count)
            else:
                for _ in range(count):
                    self.skip_value(of)
        else:
            self._bytes(SCALARS[kind])

    def _bytes(self, count):
        data = self.file.read(count)
        if len(data) != count:
            raise ValueError("the GGUF header ends early")
        return data


def tensors(file):
    """The tensor table of a GGUF file (version 2 or 3), open for reading bytes at its beginning."""
    reader = _Reader(file)
    if file.read(4) != b"GGUF":
        raise ValueError("not a GGUF file")
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version} is not known")
    count, keys = reader.number("Q"), reader.number("Q")
    for _ in range(keys):
        reader.text()
        reader.skip_value(reader.number("I"))
    found = []
    for _ in range(count):
        name = reader.text()
        shape = tuple(reader.number("Q") for _ in range(reader.number("I")))
        found.append(Tensor(name, shape, reader.number("I")))
        reader.number("Q")
    return found


def work(table):
    """`Work` of a dense decoder with this tensor table. A tied embedding counts as the output matrix."""
    output = OUTPUT if any(t.name == OUTPUT for t in table) else EMBEDDING
    matrices = [t for t in table if len(t.shape) == 2 and t.name.endswith(".weight")]
    used = [t for t in matrices if t.name != EMBEDDING or output == EMBEDDING]
    macs = sum(math.prod(t.shape) for t in used)
    last = sum(math.prod(t.shape) for t in used if t.name == output)
    return Work(sum(t.bytes for t in used), macs, macs - last)


def of_file(path):
    """`Work` of the model in this file."""
    with open(path, "rb") as file:
        return work(tensors(file))
