"""`lbhost doctor`: brings the box (doctor/report.py) and the model (llama.py) together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from lbhost import adapter_files, inspection, llama, model
from lbhost.adapters import file_bytes
from lbhost.client import AdminClient
from lbhost.config import Settings
from lbhost.doctor import report as doctor
from lbhost.errors import LbhostError, ModelFileError, UsageError
from lbhost.folders import default_runtime_dir
from lbhost.machine import topology
from lbhost.machine.tree import Roots
from lbhost.model import ModelFile
from lbhost.status import Status
from lbhost.tuning import remembered
from lbhost.tuning.remembered import Start
from lbhost.weights import identify, parts


def examine(settings: Settings, environ: Mapping[str, str]) -> doctor.Report:
    """Look at everything that `serve` would look at; takes about a second. Of several models the
    first one, with its adapters, stands for all."""
    settings = settings.served()[0]
    facts = problem = None
    try:
        file = model.resolve(settings.model, settings.alias)
        if not llama.supports_gpu():
            file, settings = _as_known(file, settings, environ)
        info = inspection.inspect(file.path, settings.kind, settings.pooling)
        adapters = adapter_files.find(
            settings.adapters, file, info, model.resolve, inspection.inspect_adapters
        )
    except (ModelFileError, UsageError) as error:
        problem = error.message
    else:
        facts = doctor.ModelFacts(
            file.alias,
            info.weights_bytes + file_bytes(adapters),
            info.kv_bytes_per_token,
            info.n_ctx_train,
            info.purpose,
            tuple(one.name for one in adapters),
        )
    return doctor.collect(
        settings,
        roots=Roots.from_environ(environ),
        environ=environ,
        model=facts,
        model_error=problem,
        system_info=llama.system_info(),
        gpu_capable=llama.supports_gpu(),
        running=_running(settings, environ),
    )


def _as_known(
    file: ModelFile, settings: Settings, environ: Mapping[str, str]
) -> tuple[ModelFile, Settings]:
    """The model and the settings as `serve` would have them by what was measured here before."""
    roots = Roots.from_environ(environ)
    box = topology.discover(roots)
    start = Start(file, identify(parts(Path(file.path))), settings)
    start = remembered.as_tuned(start, environ, box, roots)
    start = remembered.as_measured(start, environ, box, roots)
    return start.file, start.settings


def _running(settings: Settings, environ: Mapping[str, str]) -> Status | None:
    """The server on the runtime dir that these settings name, if one answers."""
    where = Path(settings.runtime_dir or default_runtime_dir(environ))
    try:
        with AdminClient(where) as client:
            return client.status()
    except LbhostError:
        return None


def as_text(found: doctor.Report) -> str:
    """For people."""
    return doctor.render(found)


def as_json(found: doctor.Report) -> str:
    """For programs."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
