"""What `lbhost tune` says: before it starts, and what it found."""

from __future__ import annotations

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lbhost.placement import memory
from lbhost.tuning.tuned import Finding, Tuned
from lbhost.tuning.tuner import Plan

UNKNOWN = "\N{EN DASH}"
UNDO = "undo: lbhost serve --no-tuned, or lbhost tune --forget"


def announcement(plan: Plan, where: str) -> str:
    """What it will take."""
    tried = [format_.name for format_ in plan.formats]
    shapes = ", ".join(str(candidate.shape) for candidate in plan.shapes)
    return (
        f"tuning {plan.path.name}: weights ({', '.join(tried) or 'as they are'}), "
        f"workers x threads ({shapes}), flash attention. Needs up to "
        f"{memory.gib(plan.memory_bytes)} of memory and, until it is done, "
        f"{memory.gib(plan.disk_bytes)} in {where}. Other work on this box makes "
        "it slower and less sure."
    )


def view(choice: Tuned) -> RenderableType:
    """The findings and the choice, for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tried", no_wrap=True)
    embeds = all(f.speeds.decode is None for f in choice.findings if f.speeds is not None)
    lost = "1 - cos" if embeds else "KL"
    for name in ("prefill/s", "decode/s", "speed", lost, "agree", "size"):
        table.add_column(name, justify="right")
    for finding in choice.findings:
        table.add_row(*_cells(finding))
    notes = [f"{f.what}: {f.note}" for f in choice.findings if f.note]
    return Group(table, Text("\n".join(["", *notes, sentence(choice), UNDO])))


def sentence(choice: Tuned) -> str:
    """What was chosen."""
    weights = (
        "the weights as they are" if choice.file is None else f"weights in {choice.file.format}"
    )
    workers = f"{choice.shape.workers} workers of {choice.shape.threads}"
    threads = "thread" if choice.shape.threads == 1 else "threads"
    flash = {None: "", True: ", with flash attention", False: ", without flash attention"}
    return f"chosen: {weights}, {workers} {threads}{flash[choice.flash_attention]}"


def as_json(choice: Tuned) -> str:
    """For programs."""
    return msgspec.json.format(msgspec.json.encode(choice), indent=2).decode()


def _cells(finding: Finding) -> list[str]:
    speeds = finding.speeds
    return [
        finding.what,
        UNKNOWN if speeds is None else f"{speeds.prefill:.0f}",
        UNKNOWN if speeds is None or speeds.decode is None else f"{speeds.decode:.0f}",
        UNKNOWN if finding.gain is None else f"{finding.gain:.2f}x",
        UNKNOWN if finding.kl is None else f"{finding.kl:.4f}",
        UNKNOWN if finding.agreement is None else f"{finding.agreement:.0%}",
        UNKNOWN if finding.size is None else memory.gib(finding.size),
    ]
