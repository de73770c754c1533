"""`lbhost tune`: tries weight formats, shapes of workers and flash attention, and keeps the best.

What is compared is measured in turns, so that what the box does meanwhile is done to both. Starts
measuring processes, writes to its work folder; whatever ends it, nothing else is left behind.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from lbhost.errors import TuningError
from lbhost.llama import ModelInfo
from lbhost.placement import memory
from lbhost.purpose import KindChoice, Pooling
from lbhost.tuning import formats, tuned
from lbhost.tuning.formats import Format
from lbhost.tuning.gauge import Gauge
from lbhost.tuning.identity import Identity
from lbhost.tuning.shapes import SLOT_TOKENS, Candidate, Shape, Speeds, choose, contenders, speed
from lbhost.tuning.trial import Judge, Judged, Load, Loaded, Rewrite, Trial
from lbhost.tuning.tuned import Finding, RewrittenFile, Tuned
from lbhost.weights import FilePart, identify

TEXT_TOKENS = 256
"""Rows of logits that are kept while formats are judged."""

Tell = Callable[[float, str], None]
"""Progress: the part that is done, and what is being done."""


class Plan(msgspec.Struct, frozen=True):
    """What is to be tried, and how thoroughly."""

    identity: Identity
    path: Path
    parts: tuple[FilePart, ...]
    info: ModelInfo
    shapes: tuple[Candidate, ...]
    formats: tuple[Format, ...]
    """Weight formats to try."""
    max_kl: float
    """Formats that lose more, in nats a token or of vectors in 1 - cosine, are not taken."""
    available_bytes: int | None
    asked_kind: KindChoice = KindChoice.AUTO
    """What the model was asked to be."""
    window_s: float = 1.0
    """Of prefill and of decode, per reading."""
    rounds: int = 4
    patience_s: float = 120.0
    """For one reading, or for a model to be loaded or rewritten, per GiB of it."""

    @property
    def pooling(self) -> Pooling | None:
        """How the model's vectors are pooled; None: it generates."""
        return self.info.purpose.pooling

    @property
    def memory_bytes(self) -> int:
        """Needed at most: the original and a rewritten model at once, and the workers of one."""
        workers = max(len(candidate.placements) for candidate in self.shapes)
        sequences = max(len(c.placements) * c.slots for c in self.shapes)
        kv = sequences * SLOT_TOKENS * self.info.kv_bytes_per_token
        return (
            memory.need_bytes(
                weights_bytes=self.info.weights_bytes + self.written_bytes,
                kv_bytes_per_token=0,
                workers=workers,
                slots=0,
                n_ctx=0,
            )
            + kv
        )

    @property
    def written_bytes(self) -> int:
        """The largest file that is written."""
        return max((formats.size(f, self.info.parameters) for f in self.formats), default=0)

    @property
    def disk_bytes(self) -> int:
        """Needed at most: the best rewritten model so far, the next one, the logits."""
        return 2 * self.written_bytes + 4 * TEXT_TOKENS * self.info.n_vocab

    def within_s(self) -> float:
        """How long one question may take."""
        return self.patience_s * (1 + self.info.weights_bytes / (1 << 30))


class _Best(msgspec.Struct):
    """The weights that win so far."""

    path: Path
    format: Format | None = None
    gain: float = 1.0


class Tuner:
    """One run."""

    def __init__(
        self,
        plan: Plan,
        environ: Mapping[str, str],
        process_environ: Mapping[str, str],
        tell: Tell,
    ) -> None:
        """
        Args:
            environ: says where the cache is.
            process_environ: what a fork server gets.
        """
        self._plan = plan
        self._environ = environ
        self._process_environ = process_environ
        self._tell = tell
        self._findings: list[Finding] = []

    def run(self) -> Tuned:
        """Measure, choose, keep.

        Raises:
            TuningError: memory or disk is too small, or something cannot be measured.
        """
        plan = self._plan
        with tuned.workroom(self._environ) as work:
            require_room(plan, work)
            best = self._formats(work)
            self._tell(0.65, "shapes of workers")
            with Gauge(self._process_environ) as gauge:
                self._load(gauge, best.path)
                shape = self._shapes(gauge)
                flash = self._flash(gauge, shape)
            choice = Tuned(
                identity=plan.identity,
                model=str(plan.path),
                shape=shape.shape,
                file=self._file(best),
                flash_attention=flash,
                findings=tuple(self._findings),
                kind=plan.info.purpose.kind,
                asked_kind=plan.asked_kind,
            )
            tuned.keep(self._environ, choice, best.path if best.format else None)
        self._tell(1.0, "done")
        return choice

    def _file(self, best: _Best) -> RewrittenFile | None:
        if best.format is None:
            return None
        stat = best.path.stat()
        name = f"{self._plan.identity.key}-{best.format.name}.gguf"
        return RewrittenFile(name, best.format.name, stat.st_size, stat.st_mtime_ns)

    def _load(self, gauge: Gauge, path: Path, work: Path | None = None) -> Loaded:
        original = path == self._plan.path
        parts = self._plan.parts if original else identify([path])
        node = self._plan.shapes[0].placements[0].node
        folder = None if work is None else str(work)
        return gauge.load(Load(str(path), parts, node, folder), self._plan.within_s())

    def _trial(self, candidate: Candidate, flash: bool | None = None) -> Trial:
        own = self._plan
        return Trial(candidate.placements, candidate.slots, own.window_s, flash, own.pooling)

    def _judged(self, gauge: Gauge, answers: Path) -> Judged:
        return gauge.judge(Judge(str(answers), self._plan.pooling), self._plan.within_s())

    # --- weights ------------------------------------------------------------------------

    def _formats(self, work: Path) -> _Best:
        """The fastest format that loses no more than it may."""
        best = _Best(self._plan.path)
        answers = work / "answers"
        with Gauge(self._process_environ) as gauge:
            self._tell(0.0, "loading the model")
            self._load(gauge, self._plan.path, work)
            self._tell(0.03, "its own answers")
            self._judged(gauge, answers)
            first = gauge.measure(self._trial(self._plan.shapes[0]), self._plan.within_s())
            size = sum(part.size for part in self._plan.parts)
            self._findings.append(Finding("as it is", first, 1.0, 0.0, 1.0, size))
            tried = self._plan.formats
            for number, format_ in enumerate(tried):
                self._tell(0.1 + 0.55 * number / len(tried), f"weights in {format_.name}")
                target = work / f"{format_.name}.gguf"
                gain = self._format(gauge, format_, target, answers)
                if gain is not None and gain >= max(formats.WIN, best.gain):
                    if best.format is not None:
                        best.path.unlink()
                    best = _Best(target, format_, gain)
                else:
                    target.unlink(missing_ok=True)
        return best

    def _format(
        self, original: Gauge, format_: Format, target: Path, answers: Path
    ) -> float | None:
        """How many times as fast a format is; None if it loses too much or cannot be had."""
        plan, within_s = self._plan, self._plan.within_s()
        note, judged, gain, reading = "", None, None, None
        size = None
        try:
            with Gauge(self._process_environ) as writer:
                threads = len(os.sched_getaffinity(0))
                task = Rewrite(str(plan.path), str(target), format_.number, threads)
                writer.rewrite(task, within_s)
            size = target.stat().st_size
            with Gauge(self._process_environ) as gauge:
                self._load(gauge, target, target.parent)
                judged = self._judged(gauge, answers)
                if judged.kl <= plan.max_kl:
                    gain, reading = self._turns(
                        lambda: gauge.measure(self._trial(plan.shapes[0]), within_s),
                        lambda: original.measure(self._trial(plan.shapes[0]), within_s),
                    )
                else:
                    note = f"loses more than {plan.max_kl:g}"
        except TuningError as error:
            note = error.message
        self._findings.append(
            Finding(
                what=format_.name,
                speeds=reading,
                gain=gain,
                kl=judged.kl if judged else None,
                agreement=judged.agreement if judged else None,
                size=size,
                note=note,
            )
        )
        return gain

    def _turns(
        self, changed: Callable[[], Speeds], before: Callable[[], Speeds]
    ) -> tuple[float, Speeds]:
        """In turns, the first of a round changing; the gain and the changed one's speeds."""
        ours, theirs = [], []
        for number in range(max(2, self._plan.rounds - 1)):
            if number % 2 == 0:
                ours.append(changed())
                theirs.append(before())
            else:
                theirs.append(before())
                ours.append(changed())
        return formats.gain(ours, theirs), speed(ours)

    # --- shapes and attention -----------------------------------------------------------

    def _shapes(self, gauge: Gauge) -> Candidate:
        plan = self._plan
        rounds: dict[Shape, list[Speeds]] = {c.shape: [] for c in plan.shapes}
        left: Sequence[Candidate] = plan.shapes
        for number in range(plan.rounds):
            self._tell(0.65 + 0.2 * number / plan.rounds, "shapes of workers")
            for candidate in left if number % 2 == 0 else left[::-1]:
                reading = gauge.measure(self._trial(candidate), plan.within_s())
                rounds[candidate.shape].append(reading)
            if number > 0:  # one round alone decides nothing here
                still = contenders(rounds)
                left = [candidate for candidate in left if candidate.shape in still]
            if len(left) == 1:
                break
        narrowest = speed(rounds[plan.shapes[0].shape])
        for shape, readings in rounds.items():
            middle = speed(readings)
            gain = middle.requests_s / narrowest.requests_s if narrowest.requests_s else None
            self._findings.append(Finding(f"{shape} threads", middle, gain))
        chosen = choose(rounds)
        return next(candidate for candidate in plan.shapes if candidate.shape == chosen)

    def _flash(self, gauge: Gauge, shape: Candidate) -> bool | None:
        """Whether flash attention is to be other than it would be; None: leave it."""
        self._tell(0.88, "flash attention")
        within_s = self._plan.within_s()
        other = not gauge.loaded.flash_attention
        gain, reading = self._turns(
            lambda: gauge.measure(self._trial(shape, other), within_s),
            lambda: gauge.measure(self._trial(shape, not other), within_s),
        )
        what = f"flash attention {'on' if other else 'off'}"
        self._findings.append(Finding(what, reading, gain))
        return other if gain >= formats.WIN else None


def require_room(plan: Plan, work: Path) -> None:
    """Raises TuningError: there is less memory or disk than may be needed."""
    if plan.available_bytes is not None and plan.memory_bytes > plan.available_bytes:
        raise TuningError(
            f"tuning needs up to {memory.gib(plan.memory_bytes)} of memory, "
            f"{memory.gib(plan.available_bytes)} are available"
        )
    free = shutil.disk_usage(work).free
    if plan.disk_bytes > free:
        raise TuningError(
            f"tuning needs up to {memory.gib(plan.disk_bytes)} in {work.parent}, "
            f"{memory.gib(free)} are free"
        )
