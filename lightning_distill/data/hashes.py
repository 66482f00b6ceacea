"""Hashes, which decide the split of a text."""

import hashlib


def sha256(text: str) -> str:
    return digest(text.encode("utf-8", "surrogatepass")).hex()


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
