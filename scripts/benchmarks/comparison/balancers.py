"""How HAProxy and nginx are set up before pinned llama-servers: as their manuals say for streams.

Pure: builds configurations and command lines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
"""Where Debian puts them is not in every user's PATH."""


class Balancer(NamedTuple):
    """One of them."""

    program: str
    config: Callable[[int, Sequence[int], Path], str]
    """Port to listen on, ports of the llama-servers, a folder to write in."""
    arguments: Callable[[Path], list[str]]
    """For a configuration file; it must stay in the foreground."""


def _haproxy_config(port: int, backends: Sequence[int], _folder: Path) -> str:
    lines = "\n".join(f"    server w{n} 127.0.0.1:{at}" for n, at in enumerate(backends))
    return f"""\
global
    maxconn 2000
defaults
    mode http
    option http-no-delay
    option redispatch
    retries 2
    timeout connect 5s
    timeout client 300s
    timeout server 300s
frontend clients
    bind 127.0.0.1:{port}
    default_backend workers
backend workers
    balance leastconn
    option httpchk GET /health
    default-server check inter 1s fall 2 rise 1
{lines}
"""


def _nginx_config(port: int, backends: Sequence[int], folder: Path) -> str:
    lines = "\n".join(f"        server 127.0.0.1:{at};" for at in backends)
    kept = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "\n".join(f"    {name}_temp_path {folder}/{name};" for name in kept)
    # Its workers would become another user, who may not enter the folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    return f"""\
{user}daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 2048; }}
http {{
    access_log off;
{folders}
    upstream workers {{
        zone workers 64k;
        least_conn;
{lines}
    }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 8m;
        location / {{
            proxy_pass http://workers;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 300s;
        }}
    }}
}}
"""


haproxy = Balancer("haproxy", _haproxy_config, lambda config: ["-db", "-f", str(config)])
nginx = Balancer(
    "nginx",
    _nginx_config,
    lambda config: ["-c", str(config), "-e", "stderr", "-p", str(config.parent)],
)
