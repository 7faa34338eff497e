"""Models of the Hugging Face hub, by id: fetched into its cache, read as directories from there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from protocol.model_directory import ModelDirectoryError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model"]
WEIGHTS = ["*.safetensors"]
NOT_WANTED = ["*/*", "consolidated*"]
"""Other forms of the same weights."""


def is_hub_id(model_path: str) -> bool:
    """True for org/name, unless a directory has this path."""
    return HUB_ID.fullmatch(model_path) is not None and not Path(model_path).exists()


def fetch(hub_id: str, with_weights: bool) -> Path:
    """The model's directory; downloads what is not in the cache yet, if HF_HUB_OFFLINE allows.

    HF_TOKEN is sent along. Raises ModelDirectoryError.
    """
    # Here, as it takes a second that only users of the hub should spend.
    from huggingface_hub import errors, snapshot_download

    # What a download that breaks off ends in belongs to the library's HTTP client, httpx in some
    # versions and httpx2 in others; the library's own errors derive from it.
    failures: Any = (OSError, *errors.HfHubHTTPError.__bases__)
    patterns = SMALL_FILES + (WEIGHTS if with_weights else [])
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=NOT_WANTED))
    except errors.GatedRepoError as error:
        raise ModelDirectoryError(
            f"{hub_id} is gated: accept its terms at https://huggingface.co/{hub_id}, then set "
            "HF_TOKEN to a token of the account that did"
        ) from error
    except errors.RepositoryNotFoundError as error:
        token = "HF_TOKEN's cannot" if os.environ.get("HF_TOKEN") else "none is set"
        raise ModelDirectoryError(
            f"there is no directory {hub_id}, nor a model of this name on the Hugging Face hub "
            "that you may read; check its spelling; if it is private, set HF_TOKEN to a token that "
            f"may read it ({token})"
        ) from error
    except (errors.HFValidationError, errors.RevisionNotFoundError) as error:
        raise ModelDirectoryError(
            f"the Hugging Face hub cannot serve {hub_id} ({_first_line(error)}); check --model-path"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelDirectoryError(_not_here(hub_id, error)) from error
    except failures as error:
        raise ModelDirectoryError(
            f"{hub_id} could not be fetched from the Hugging Face hub ({_first_line(error)}); try "
            "again, what is complete is kept"
        ) from error


def _not_here(hub_id: str, error: Exception) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return (
            f"HF_HUB_OFFLINE is set and {hub_id} is not in the cache of the Hugging Face hub; "
            "unset it, or give --model-path a directory"
        )
    return (
        f"the Hugging Face hub cannot be reached ({_first_line(error)}) and {hub_id} is not in its "
        "cache; check the network, set HF_ENDPOINT to a mirror, or give --model-path a directory"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
