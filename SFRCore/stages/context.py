"""What every stage is handed: the study, the plan, the device, and where to tell what happens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import Cancelled, InputError, SFRError
from ..inputs import Layout, make_layout
from ..planning import Plan
from ..presets import get_preset
from ..runtime.devices import Device, explained_memory, is_out_of_memory
from ..runtime.jobs import Worker
from ..settings import Settings
from ..study import Case, Study
from ..volumes import CachedVolume, VolumeCache

logger = logging.getLogger(__name__)
Listener = Callable[[dict[str, Any]], None]
DEFECTS = (SFRError, OSError, RuntimeError, ValueError, MemoryError)


@dataclass
class StageContext:
    """One run of one or several stages on a study.

    ``listener`` hears every event that is also written to the run's file. ``worker`` is None in the
    processes of a multi-GPU launch that write nothing.
    """

    study: Study
    settings: Settings
    plan: Plan
    device: Device
    worker: Worker | None
    listener: Listener | None = None
    stage: str = ""
    run_dir: Path = field(default_factory=Path)
    warned: set[str] = field(default_factory=set)

    def begin(self, stage: str) -> None:
        """Name the stage that the next events belong to."""
        self.stage = stage
        if self.worker is not None:
            self.worker.stage = stage

    def emit(self, event: str, **fields: Any) -> None:
        """Append an event to the run's file and tell the listener."""
        if self.worker is not None:
            self.worker.events.emit(event, stage=self.stage, **fields)
            if self.listener is not None:
                self.listener({"event": event, "stage": self.stage, **fields})

    def warn(self, message: str, *, code: str = "", hint: str = "", case: str = "") -> None:
        """Say something once in a run."""
        if message not in self.warned:
            self.warned.add(message)
            logger.warning("%s %s", message, hint)
            self.emit("warning", code=code, message=message, hint=hint, case=case)

    def check(self) -> None:
        """Raise Cancelled, in every process alike, once the user asked to stop."""
        asked: Cancelled | None = None
        if self.worker is not None:
            try:
                self.worker.check()
            except Cancelled as error:
                asked = error
        if self.device.processes > 1:
            flag = torch.tensor([asked is not None], dtype=torch.int32, device=self.device.torch_device)
            if int(self.device.accelerator.reduce(flag, reduction="sum")) and asked is None:
                asked = Cancelled("The run was cancelled.")
        if asked is not None:
            raise asked

    def check_local(self) -> None:
        """The same for one process alone: where processes work on cases of their own."""
        if self.worker is not None:
            self.worker.check()
        elif (self.run_dir / "stop").exists():
            raise Cancelled("The run was cancelled.")

    @property
    def main(self) -> bool:
        return self.device.is_main

    @property
    def cache(self) -> VolumeCache:
        return VolumeCache(self.study.cache_dir, self.plan.preprocessing)

    @property
    def student(self) -> str:
        """The name of the network that this run trains: the user's, else the preset's."""
        return self.settings.student or get_preset(self.plan.preset).student

    def layout(self) -> Layout:
        """How this run shows patches to SAM; InputError where its input does not suit the plan."""
        plan = self.plan
        return make_layout(self.settings.input, plan.patch, plan.canvas, plan.zoom)

    def image_path(self, case: Case) -> Path:
        return self.study.image_path(case.id)

    def volume(
        self, case: Case, label_path: Path | None = None, *, cache: VolumeCache | None = None
    ) -> CachedVolume:
        """The preprocessed volume of a case, from the cache; raises SFRError where it cannot be read.

        ``cache`` takes the place of the plan's own, for a model of another preprocessing. A case that can be
        read again is no longer flagged.
        """
        cache = cache or self.cache
        volume = cache.volume(
            case.id, self.image_path(case), label_path, identity=case.image_identity or None
        )
        if case.problem:
            self._flag(case, None)
        return volume

    def readable(
        self, cases: list[Case], label_of: Callable[[Case], Path | None], doing: str
    ) -> dict[str, CachedVolume]:
        """Preprocess cases; one that cannot be read is flagged in the study, said once and left out."""
        volumes: dict[str, CachedVolume] = {}
        for index, case in enumerate(cases):
            self.check_local()
            try:
                volumes[case.id] = self.volume(case, label_of(case))
            except DEFECTS as error:
                self.leave_out(case, error)
                continue
            points = volumes[case.id].foreground
            if case.role == "labeled" and points is not None and not len(points):
                self.warn(
                    f"The label of case {case.id} is empty: it teaches that no structure is there.",
                    code="blank_label",
                    hint="Give the case another label if that is wrong.",
                    case=case.id,
                )
            self.emit("progress", step=index + 1, total=len(cases), doing=doing)
        return volumes

    def leave_out(self, case: Case, error: BaseException) -> None:
        """Flag a case that cannot be used, unless the failure is not the case's own fault: then raise it."""
        if isinstance(error, Cancelled):
            raise error
        if is_out_of_memory(error):
            with explained_memory(self.device, f"working on case {case.id}"):
                raise error
        if isinstance(error, SFRError) and error.exit_code == 4:
            raise error
        message = error.message if isinstance(error, SFRError) else f"{type(error).__name__}: {error}"
        hint = error.hint if isinstance(error, SFRError) else ""
        logger.info("case %s left out", case.id, exc_info=error)
        self._flag(case, message)
        self.warn(f"Case {case.id} is left out: {message}", code="case", hint=hint, case=case.id)

    def _flag(self, case: Case, problem: str | None) -> None:
        """Note what is wrong with a case; where somebody else changes the study just now, it is not noted."""
        try:
            self.study.flag(case.id, problem)
        except InputError as error:
            if error.code != "in_use":
                raise
            logger.info("case %s: %s", case.id, error)

    def share(self, cases: list[Case]) -> tuple[list[Case], list[Case]]:
        """The cases that wait, as the main process sees them, and this process's part of them."""
        if self.device.processes > 1:
            from accelerate.utils import broadcast_object_list

            ids = set(broadcast_object_list([[case.id for case in cases]])[0])
            self.study.reload()
            cases = [case for case in self.study.cases.values() if case.id in ids]
        return cases, cases[self.device.rank :: self.device.processes]

    def total_of(self, count: int) -> int:
        """The sum of a count over all processes, which wait for each other here."""
        if self.device.processes == 1:
            return count
        counted = torch.tensor([count], device=self.device.torch_device)
        return int(self.device.accelerator.reduce(counted, reduction="sum"))
