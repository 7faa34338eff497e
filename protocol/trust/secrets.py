"""`ClusterSecrets`: the secrets of the cluster, as a flag, a variable or a file gives them.

The first one is used, all are accepted: so a secret is replaced without a stop. A file is read
again when it has changed.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from protocol.config import ConfigError
from protocol.trust.keys import MAKE_ONE, MIN_SECRET_CHARACTERS, ClusterKeys

log = logging.getLogger(__name__)

MAX_SECRETS = 4


class ClusterSecrets:
    """The keys of the secrets that this process knows. May be used by any thread."""

    def __init__(self, given: Sequence[str] = (), file: str = "") -> None:
        """The secrets in `file` come after those that are `given`. Raises ConfigError if there is
        none, or one is too short."""
        self._given = tuple(given)
        self._file = file
        self._seen: tuple[int, int] | None = None
        self._keys = self._read()

    @classmethod
    def of(cls, given: Sequence[str], file: str) -> ClusterSecrets | None:
        """Returns the secrets; None if neither a text nor a file is given. Raises ConfigError."""
        return cls(given, file) if given or file else None

    @property
    def keys(self) -> tuple[ClusterKeys, ...]:
        """The keys of all secrets; those of the first are used."""
        if self._file and self._stamp() != self._seen:
            try:
                self._keys = self._read()
                log.info("the cluster secrets were read again: %d are accepted", len(self._keys))
            except ConfigError as error:
                log.error("the cluster secrets stay as they were: %s", error)
        return self._keys

    def find(self, key_id: str) -> ClusterKeys | None:
        """Returns the keys with this id; None if they are not known."""
        return next((keys for keys in self.keys if keys.id == key_id), None)

    def _read(self) -> tuple[ClusterKeys, ...]:
        self._seen = self._stamp() if self._file else None
        texts = [*self._given, *(_lines_of(self._file) if self._file else ())]
        if not 0 < len(texts) <= MAX_SECRETS:
            raise ConfigError(
                f"there are {len(texts)} cluster secrets; give 1 to {MAX_SECRETS}, one a line in "
                f"--cluster-secret-file; {MAKE_ONE}"
            )
        if min(map(len, texts)) < MIN_SECRET_CHARACTERS:
            raise ConfigError(
                f"a cluster secret needs at least {MIN_SECRET_CHARACTERS} characters; {MAKE_ONE}"
            )
        return tuple(map(ClusterKeys.of, dict.fromkeys(texts)))

    def _stamp(self) -> tuple[int, int] | None:
        """Returns what changes with the file; None if it cannot be looked at."""
        try:
            status = os.stat(self._file)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


def make_secret_file(file: Path) -> None:
    """Writes a new secret into a file that only this user can read. Raises FileExistsError if there
    is such a file, or another OSError."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        written.write(f"{secrets.token_hex(32)}\n")


def _lines_of(file: str) -> list[str]:
    """Returns the secrets in a file, one a line; empty lines and those that begin with # are none.
    Raises ConfigError."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--cluster-secret-file {file} cannot be read ({error}); {MAKE_ONE}"
        ) from error
    return [text for line in lines if (text := line.strip()) and not text.startswith("#")]
