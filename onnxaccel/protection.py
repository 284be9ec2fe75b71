"""Models that stay whole and stay yours: encryption with AES-256-GCM, signatures of OpenSSF's kind.

    from onnxaccel import protection

    key = protection.Key.from_file(protection.generate("model.key"))
    protection.encrypt("model.onnx", "model.encrypted.onnx", key)
    model = oa.Model.load("model.encrypted.onnx", key=key)     # decrypted in memory only
    oa.Trainer(model).export("trained.onnx")                   # encrypted with the same key

    private, public = protection.generate_pair(Path("signer.pem"))
    protection.sign("model.onnx", private)
    oa.Model.load("model.onnx", public_key=public)             # refused unless it is what was signed

What is promised and what not: docs/protection.md.
"""

from __future__ import annotations

from onnxaccel.graph.files import decrypt, encrypt, sign, verify
from onnxaccel.protect.container import is_sealed
from onnxaccel.protect.keys import Key, generate
from onnxaccel.protect.signatures import generate_pair

__all__ = ["Key", "decrypt", "encrypt", "generate", "generate_pair", "is_sealed", "sign", "verify"]
