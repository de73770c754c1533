"""Whether the server may listen where it was told to, given who could come in there.

Looks at the address and the API keys; changes nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

from lbhost import keys, log
from lbhost.config import Settings
from lbhost.errors import UsageError


def check(settings: Settings, listener: socket.socket) -> None:
    """Warns of a keys file that others may read.

    Raises:
        UsageError: the keys file is not right, or others reach the port and need no key.
    """
    if settings.keys_file is not None:
        path = Path(settings.keys_file)
        keys.read(path)
        if keys.is_open_to_others(path):
            log.get().warning("others may read the keys file: chmod 600", file=str(path))
    elif settings.api_key is None and not settings.insecure_no_key:
        address = listener.getsockname()[0]
        if not ipaddress.ip_address(address).is_loopback:
            raise UsageError(
                f"whoever reaches {address} could use the server: set --keys-file or "
                "LBHOST_API_KEY, or say --insecure-no-key"
            )
