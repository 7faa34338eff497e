"""Writes a trained model as a folder that transformers (and any Llama server) can load.

Knows file names and formats. Every file appears under its name only when it is complete.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import corpus
import torch
from model import Shape, TinyLlama
from safetensors.torch import save_file
from tokenizer import write_tokenizer
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

MAX_LOGIT_DIFFERENCE = 1e-3
NUM_CHECKED_TOKENS = 300


def export(model: TinyLlama, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes everything but the model card. Rounds the weights to bfloat16, in `model` too, and
    raises RuntimeError if transformers computes anything else from the files."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    part = folder / "model.safetensors.part"
    save_file(tensors, part, metadata={"format": "pt"})
    os.replace(part, folder / "model.safetensors")
    stops = [tokenizer.token_to_id(token) for token in (corpus.EOS, corpus.END)]
    bos, pad = (tokenizer.token_to_id(token) for token in (corpus.BOS, "<|pad|>"))
    ids = {"bos_token_id": bos, "eos_token_id": stops, "pad_token_id": pad}
    _write_json(folder / "config.json", _config(model.shape) | ids)
    _write_json(folder / "generation_config.json", ids)
    write_tokenizer(tokenizer, folder)
    check_logits(model, folder)


def check_logits(model: TinyLlama, folder: Path) -> None:
    """Raises RuntimeError if transformers computes other logits from the folder than `model`."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.shape.vocab_size, (2, NUM_CHECKED_TOKENS), generator=generator)
    reference = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        ours = model.float().cpu()(ids)
        theirs = reference(ids).logits
    difference = (ours - theirs).abs().max().item()
    if difference > MAX_LOGIT_DIFFERENCE:
        raise RuntimeError(f"exported model differs from the trained one: {difference}")


def _config(shape: Shape) -> dict[str, object]:
    """Returns the content of config.json, without the ids of special tokens."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(shape),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def _write_json(path: Path, value: object) -> None:
    """Writes a file beside `path` first, and renames it when it is complete."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    os.replace(part, path)
