"""Fetches models of the Hugging Face hub into its local cache."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from protocol.model.directory import ModelDirectoryError
from protocol.model.gguf.parts import SUFFIX, part_files

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""Matches the id of a model on the hub, organisation/name."""
HUB_FILE = re.compile(rf"(?P<id>{HUB_ID.pattern})/(?P<file>(?:\w[\w.-]*/)*\w[\w.-]*\.gguf)")
"""Matches a file of a model on the hub, organisation/name/file.gguf."""
SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model", "*.tiktoken"]
WEIGHTS = ["*.safetensors"]
NOT_WANTED = ["*/*", "consolidated*"]
"""Files that hold the same weights in other forms."""
NAMED_TEMPLATES = ["additional_chat_templates/*.jinja"]
"""Chat templates with names, in the only folder that is wanted."""


def is_hub_id(model_path: str) -> bool:
    """Returns True if `model_path` has the form org/name or org/name/file.gguf and is no path that
    exists."""
    is_file = model_path.endswith(SUFFIX)
    match = (HUB_FILE if is_file else HUB_ID).fullmatch(model_path)
    return match is not None and not Path(model_path).exists()


def fetch(hub_id: str, with_weights: bool) -> Path:
    """Returns the path of a model in the cache, a directory or a file in GGUF; downloads what is
    not there yet, unless HF_HUB_OFFLINE forbids it. Raises ModelDirectoryError.

    The library sends HF_TOKEN along. Without weights only the small files are fetched; of GGUF,
    which has everything in one file, that one, or the first part of a split set.
    """
    # Not at the top: the import takes a second that only users of the hub should spend.
    from huggingface_hub import errors

    match = HUB_FILE.fullmatch(hub_id)
    hub_id, file = (match["id"], match["file"]) if match else (hub_id, "")
    # A download that breaks off raises an error of the library's HTTP client, which is httpx in
    # some versions and httpx2 in others. It is found as the base of the library's own errors.
    failures: Any = (OSError, *errors.HfHubHTTPError.__bases__)
    try:
        if file:
            return _fetch_file(hub_id, file, with_weights)
        return _fetch_directory(hub_id, with_weights)
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


def _fetch_directory(hub_id: str, with_weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = SMALL_FILES + (WEIGHTS if with_weights else [])
    path = snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=NOT_WANTED)
    # The patterns cannot leave out all folders but one, so that one is asked for on its own. A
    # snapshot is called like its commit: what was pushed meanwhile does not mix with it.
    commit = Path(path).name
    snapshot_download(hub_id, revision=commit, allow_patterns=NAMED_TEMPLATES)
    return Path(path)


def _fetch_file(hub_id: str, file: str, with_weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    files = [part.as_posix() for part in part_files(Path(file))]
    wanted = files if with_weights else files[:1]
    directory = Path(snapshot_download(hub_id, allow_patterns=wanted))
    if missing := [name for name in wanted if not (directory / name).is_file()]:
        raise ModelDirectoryError(
            f"{hub_id} has no {missing[0]} on the Hugging Face hub; see its list of files at "
            f"https://huggingface.co/{hub_id}/tree/main"
        )
    return directory / files[0]


def _not_here(hub_id: str, error: Exception) -> str:
    """Returns the message for a model that is not in the cache while the hub is out of reach."""
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
    """Returns the first line of an error's message, or its type if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
