#!/usr/bin/env python3
"""Reads a packed file of mqat (.mqat) to float arrays, with the standard library and numpy. docs/format.md has the layout.

    python3 read_packed.py net.mqat                               lists the tensors
    python3 read_packed.py net.mqat --out net.npz                 writes them for numpy
    python3 read_packed.py net.mqat --compare net.safetensors     compares with `mqat export --weights quantized`
"""

import argparse
import json
import struct
import sys

import numpy as np

MAGIC = b"\x93MQAT\r\n\x1a"
DTYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}


def crc32c(data, _table=[]):
    """CRC-32C (Castagnoli) of bytes."""
    if not _table:
        for byte in range(256):
            for _ in range(8):
                byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
            _table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def require(condition, message):
    if not condition:
        raise ValueError(message)


def unpack_codes(data, coding, number):
    """Numbers of levels, from 0, of `number` weights."""
    packed = np.frombuffer(data, np.uint8)
    if coding == "base3":  # five to a byte: c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4
        digits = packed[:, None] // np.array([1, 3, 9, 27, 81], np.uint8) % 3
        return digits.reshape(-1)[:number]
    bits = coding["bits"]  # side by side, the lowest bit of the first byte first
    stream = np.unpackbits(packed, bitorder="little")[: number * bits].reshape(number, bits)
    return (stream << np.arange(bits, dtype=np.uint8)).sum(axis=1).astype(np.uint8)


def level_tables(grid, data):
    """The levels [scales, levels], float32: one row for the tensor, or one for each slice of its first dimension."""
    (kind, grid), = grid.items()
    if kind == "uniform":
        steps = np.frombuffer(data, "<f4")
        integers = grid["first"] + grid["stride"] * np.arange(grid["levels"])
        return integers.astype(np.float32) * steps[:, None]
    if kind == "powers_of_two":
        lowest, n = np.frombuffer(data, "<i4"), grid["exponents"]
        rank = np.arange(-n, n + 1)
        powers = np.exp2((lowest[:, None] + np.abs(rank) - 1).astype(np.float64))
        return (np.sign(rank) * powers).astype(np.float32)
    require(kind == "table", f"unknown grid {kind}")
    return np.frombuffer(data, "<f4").reshape(-1, grid["levels"])


def read_packed(path):
    """The file's `meta` and its tensors by name; quantized weights are the float32 numbers that the network computes with."""
    with open(path, "rb") as file:
        content = file.read()
    require(content[:8] == MAGIC and len(content) >= 32, f"{path} is not a packed file")
    version, header_bytes, header_crc, data_crc, own_crc = struct.unpack("<IQIII", content[8:32])
    require(crc32c(content[:28]) == own_crc, f"{path}: its first 28 bytes are damaged")
    require(version == 1, f"{path} has layout {version}, expected 1")
    text, data = content[32 : 32 + header_bytes], content[32 + header_bytes :]
    require(crc32c(text) == header_crc, f"{path}: its header is damaged or truncated")
    header = json.loads(text)
    require(len(data) == header["data_bytes"] and crc32c(data) == data_crc, f"{path}: its data are damaged or truncated")
    tensors = {}
    for entry in header["tensors"]:
        own = data[slice(*entry["at"])]
        shape = entry["shape"]
        if "dtype" in entry:
            tensors[entry["name"]] = np.frombuffer(own, DTYPES[entry["dtype"]]).reshape(shape)
            continue
        codes = entry["codes"]
        tables = level_tables(codes["grid"], data[slice(*codes["grid_at"])])
        numbers = unpack_codes(own, codes["coding"], int(np.prod(shape))).reshape(len(tables), -1)
        tensors[entry["name"]] = np.take_along_axis(tables, numbers.astype(np.intp), axis=1).reshape(shape)
    return header["meta"], tensors


def read_safetensors(path):
    """The tensors of a safetensors file by name."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }


def compare(tensors, others):
    """Prints how many tensors of the same name are equal; the names of those that are not."""
    shared = [name for name in tensors if name in others]
    require(shared, "no tensor of one file is in the other")
    differing = [name for name in shared if not np.array_equal(tensors[name], others[name])]
    print(f"{len(shared) - len(differing)} of {len(shared)} tensors equal, bit for bit; {len(tensors) - len(shared)} in the packed file alone")
    for name in differing:
        largest = np.abs(tensors[name].astype(np.float64) - others[name]).max()
        print(f"  {name} differs by up to {largest:.3g}")
    return not differing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--out", help="an .npz file to write")
    parser.add_argument("--compare", metavar="SAFETENSORS", help="exit code 1 if a tensor of the same name differs")
    arguments = parser.parse_args()
    meta, tensors = read_packed(arguments.file)
    if arguments.out:
        np.savez(arguments.out, **tensors)
    if arguments.compare:
        sys.exit(0 if compare(tensors, read_safetensors(arguments.compare)) else 1)
    for name, tensor in tensors.items():
        print(f"{name:<56} {tensor.dtype!s:<8} {list(tensor.shape)}, {len(np.unique(tensor))} different numbers")
    folded = meta.get("folded_batch_norms", [])
    print(f"{len(tensors)} tensors; {len(folded)} batch norms as multiplier and offset")


if __name__ == "__main__":
    main()
