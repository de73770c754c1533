"""The API keys in force, and whose request it is: those of the keys file and --api-key.

Owns the accounts. Reads the file again when it has changed (`look`) or when told to (`reread`);
a file that is not right leaves everything as it is. What was used stays used when only limits
change. A gateway that starts anew begins with full buckets.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from lbhost import keys, log
from lbhost.config import Settings
from lbhost.errors import UsageError
from lbhost.gateway.account import Account
from lbhost.keys import Key

LOOK_S = 1.0
"""Between two looks at the file."""

_UNNAMED = Key(name="", hash="", highest_service_tier="priority", metrics="all")

_Stamp: TypeAlias = tuple[int, int, int, int] | None


class Keyring:
    """All keys of one gateway."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """A file that is not right lets nobody in but --api-key, until it is."""
        self._clock = clock
        self._path: Path | None = None
        self._secret = secrets.token_bytes(32)
        self._unnamed: dict[bytes, Account] = {}
        self._named: dict[bytes, Account] = {}
        self.needed = False
        """Whether requests must carry a key."""
        self._stamp: _Stamp = None
        self.adopt(settings)

    def adopt(self, settings: Settings) -> None:
        """Another --api-key, or another file. A key that stays has used what it had used."""
        self._path = None if settings.keys_file is None else Path(settings.keys_file)
        self.needed = settings.api_key is not None or self._path is not None
        before, self._unnamed = self._unnamed, {}
        if settings.api_key is not None:
            key = settings.api_key.encode()
            at = self._blinded(keys.digest(key))
            account = before.get(at) or Account(_UNNAMED, scope_of(key), self._clock())
            self._unnamed[at] = account
        self._stamp = self._stamp_now()
        if self._path is None:
            self._named = {}
        else:
            self.reread()

    @property
    def named(self) -> list[Account]:
        """Those of the file."""
        return list(self._named.values())

    def find(self, key: bytes) -> Account | None:
        """Whose key that is, if it is one."""
        at = self._blinded(keys.digest(key))
        return self._named.get(at) or self._unnamed.get(at)

    def _blinded(self, digest: bytes) -> bytes:
        """What a key is looked up by: how long that takes tells nothing about any key, because
        nobody outside knows what is compared."""
        return hashlib.blake2b(digest, key=self._secret, digest_size=32).digest()

    # --- the file --------------------------------------------------------------------

    def look(self) -> None:
        """Read the file again if it has changed."""
        stamp = self._stamp_now()
        if stamp != self._stamp:
            self._stamp = stamp
            self.reread()

    def reread(self) -> bool:
        """Read the file again. Says in the log what came of it; False: everything stays as it was.

        Without a keys file there is nothing to do.
        """
        if self._path is None:
            return True
        try:
            found = keys.read(self._path)
        except UsageError as error:
            log.get().error("the API keys stay as they were", reason=error.message)
            return False
        self._replace(found)
        log.get().info("API keys read", keys=len(found), file=str(self._path))
        return True

    def _replace(self, found: tuple[Key, ...]) -> None:
        now = self._clock()
        named: dict[bytes, Account] = {}
        for key in found:
            digest = bytes.fromhex(key.hash.removeprefix("sha256:"))
            at = self._blinded(digest)
            account = self._named.get(at)
            if account is None:
                account = Account(key, scope_of(digest), now)
            elif account.key != key:
                account.change(key, now)
            named[at] = account
        self._named = named

    def _stamp_now(self) -> _Stamp:
        """Changes whenever the file does."""
        if self._path is None:
            return None
        try:
            found = os.stat(self._path)  # noqa: PTH116 - in the event loop, once a second
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def scope_of(key: bytes) -> int:
    """Names the scope of a key's requests (wire.Submit.scope) and does not tell the key: not 0."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, person=b"lbhost scope").digest()) or 1
