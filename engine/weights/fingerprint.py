"""`model_fingerprint`: the same for copies of one model, another for any other weights."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path

from protocol.model_directory import ModelDirectoryError, read_config

NUM_SAMPLES = 16
SAMPLE_BYTES = 4096
IGNORED_KEYS = ("_name_or_path", "transformers_version")


def weight_files(path: Path) -> list[Path]:
    """The directory's *.safetensors, by name; raises ModelDirectoryError if there is none."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelDirectoryError(
            f"{path} has no *.safetensors; convert the weights, for instance with transformers' "
            "save_pretrained"
        )
    return files


def model_fingerprint(path: Path, variant: str = "", is_dummy: bool = False) -> str:
    """16 bytes in hex over config.json and samples of every weight file.

    Header, size and evenly spread samples of the data are hashed rather than all of it: a node
    must start in seconds on 100 GB. Two fine-tunes differ in every sample. `variant` names what
    else decides about the KV; dummy weights follow from the config.
    """
    digest = blake2b(digest_size=16, person=b"kvrelay-model")
    config = read_config(path)
    kept = {key: value for key, value in config.items() if key not in IGNORED_KEYS}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    digest.update(variant.encode())
    if is_dummy:
        digest.update(b"dummy weights")
        return digest.hexdigest()
    for file in weight_files(path):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            for i in range(NUM_SAMPLES):
                stream.seek(i * size // NUM_SAMPLES)
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()
