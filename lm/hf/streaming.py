"""Safetensors written tensor by tensor. The library's own writer wants all of them in memory, and copies them there.

A file is the length of a JSON header in 8 bytes, the header, and the tensors' bytes, little-endian and without gaps.
"""

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..data.files import atomic

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(
    path: Path, layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write `tensors`, cast to the dtypes of `layout`, which gives every one's shape and dtype in any order.

    Raises ValueError when a tensor is not in the layout or has another shape, or one is left out.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places: dict[str, int] = {}
    end = 0
    # wide elements first: every tensor is aligned to its element
    for name, (shape, dtype) in sorted(layout.items(), key=lambda item: -item[1][1].itemsize):
        places[name], end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [places[name], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, tensor in tensors:
            shape, dtype = layout[name]
            if tuple(tensor.shape) != shape:
                raise ValueError(f"tensor {name}: shape {list(tensor.shape)}, the layout says {list(shape)}")
            file.seek(start + places.pop(name))
            file.write(tensor.to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)
        if places:
            raise ValueError(f"tensors {', '.join(places)}: in the layout, not written")
