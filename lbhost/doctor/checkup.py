"""`lbhost doctor`: brings the box (doctor/report.py) and the model (llama.py) together."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from lbhost import llama, model
from lbhost.config import Settings
from lbhost.doctor import report as doctor
from lbhost.errors import ModelFileError
from lbhost.machine.tree import Roots


def examine(settings: Settings, environ: Mapping[str, str]) -> doctor.Report:
    """Look at everything that `serve` would look at; takes about a second."""
    facts = problem = None
    try:
        file = model.resolve(settings.model, settings.alias)
        info = llama.inspect(file.path)
    except ModelFileError as error:
        problem = error.message
    else:
        facts = doctor.ModelFacts(
            file.alias, info.weights_bytes, info.kv_bytes_per_token, info.n_ctx_train
        )
    return doctor.collect(
        settings,
        roots=Roots.from_environ(environ),
        environ=environ,
        model=facts,
        model_error=problem,
        system_info=llama.system_info(),
        gpu_capable=llama.supports_gpu(),
    )


def as_text(found: doctor.Report) -> str:
    """For people."""
    return doctor.render(found)


def as_json(found: doctor.Report) -> str:
    """For programs."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
