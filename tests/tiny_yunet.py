"""A network with YuNet's inputs and outputs, that takes every bright cell for a face: OpenCV's own detector decodes what it says.

Written as ONNX by hand (onnx.proto's field numbers), because the package that writes ONNX is no part of the environment.
"""

import struct
from pathlib import Path

STRIDES = (8, 16, 32)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _tensor(name: str, shape: tuple[int, ...], values: list[float]) -> bytes:
    dims = b"".join(_field(1, size) for size in shape)
    return dims + _field(2, 1) + _field(8, name) + _field(9, struct.pack(f"<{len(values)}f", *values))


def _ints(name: str, values: tuple[int, ...]) -> bytes:
    return _field(5, _field(1, name) + b"".join(_field(8, value) for value in values) + _field(20, 7))


def _node(kind: str, inputs: list[str], output: str, *attributes: bytes) -> bytes:
    return _field(
        1, b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, kind) + b"".join(attributes)
    )


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _field(1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def save_tiny_yunet(path: Path) -> Path:
    """Score of a cell: its mean brightness; box: the square of its stride around its corner."""
    nodes, tensors, outputs = b"", b"", b""
    for stride in STRIDES:
        pooled = f"pooled_{stride}"
        window = (_ints("kernel_shape", (stride, stride)), _ints("strides", (stride, stride)))
        nodes += _node("AveragePool", ["input"], pooled, *window)
        for kind, channels, weight in (
            ("cls", 1, 1 / 3 / 255),
            ("obj", 1, 1 / 3 / 255),
            ("bbox", 4, 0.0),
            ("kps", 10, 0.0),
        ):
            name = f"{kind}_{stride}"
            tensors += _field(5, _tensor(f"w_{name}", (channels, 3, 1, 1), [weight] * 3 * channels))
            nodes += _node("Conv", [pooled, f"w_{name}"], name, _ints("kernel_shape", (1, 1)))
            outputs += _field(12, _value(name, (1, channels, 320 // stride, 320 // stride)))
    graph = nodes + _field(2, "yunet") + tensors + _field(11, _value("input", (1, 3, 320, 320))) + outputs
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 12)))
    return path
