"""What the fault tests share: a server that forks one process a command, with a fault at its n-th write.

Run as a program it is that server: everything is imported once, and each command of `sfr` then runs in a fork
of its own, so that it can be killed for real without paying for the imports again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from Testing.Core.strikes import Strikes, places

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = "--device cpu --foundation tiny --patch 16,16,16 --iterations-finetune 3 --iterations-retrain 3"
USED = ("accelerate", "pydantic.type_adapter", "rich.progress")
"""What commands import only when they need it: the server has it at hand."""
TEMPORARY = ("*.sfr-tmp-*", ".staging/*", "runs/*/.reserve")


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code, what it printed, the files and folders that it wrote, in order, and
    which of these were files that it did not rename into place.
    """

    code: int
    out: str
    err: str
    writes: list[str]
    made: list[str]

    @property
    def last(self) -> str:
        """The file at which the fault struck, or that was written last."""
        return self.writes[-1] if self.writes else ""

    @property
    def places(self) -> list[str]:
        """The same as another run of the command would write them; see ``strikes``."""
        return places(self.writes)


class Server:
    """Runs commands of ``sfr``, one process each; see the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "NO_COLOR": "1"}
        env.pop("SFR_RUN", None)
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=env,
            cwd=folder,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(
        self,
        *words: Any,
        fault: str = "",
        at: int = 0,
        beyond: Iterable[str] = (),
        small: bool = True,
        checkpoints: bool = False,
        readonly: bool = False,
        env: dict[str, str] | None = None,
    ) -> Running:
        """Start ``sfr WORDS``. ``small`` networks are hundreds of times smaller than the real ones;
        with ``checkpoints`` one is written after every step; ``readonly`` hides the right to write. Of a
        ``fault``, ``at`` or ``beyond`` says where it strikes; see ``strikes``.
        """
        self.number += 1
        place = self.folder / f"command-{self.number}"
        place.mkdir()
        order = {
            "words": [str(word) for word in words],
            "fault": fault,
            "at": at,
            "beyond": list(beyond),
            "small": small,
            "checkpoints": checkpoints,
            "readonly": readonly,
            "env": env or {},
            "place": str(place),
        }
        self._say(order)
        return Running(place, int(self._answer()["pid"]))

    def run(self, *words: Any, **how: Any) -> Done:
        """Run ``sfr WORDS`` to its end."""
        return self.start(*words, **how).wait()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        self.process.wait(10)

    def _say(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@dataclass(frozen=True)
class Running:
    """A command that was started."""

    place: Path
    pid: int

    def wait(self, timeout: float = 200.0) -> Done:
        deadline = time.monotonic() + timeout
        code = self.place / "code"
        while not code.is_file():
            assert time.monotonic() < deadline, (self.place / "err").read_text()
            time.sleep(0.005)
        log = self.place / "writes"
        lines = log.read_text().splitlines() if log.is_file() else []
        return Done(
            int(code.read_text()),
            (self.place / "out").read_text(),
            (self.place / "err").read_text(),
            [line.partition(" ")[2] for line in lines],
            [line.removeprefix("made ") for line in lines if line.startswith("made ")],
        )


def serve() -> None:
    """Read orders from stdin, one JSON object a line; answer each with the pid of its process."""
    import gc
    import importlib
    import pkgutil

    import matplotlib.pyplot  # noqa: F401
    import torch

    import SFRCore
    from SFRCore.runtime.devices import choose_device

    for module in pkgutil.walk_packages(SFRCore.__path__, "SFRCore."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in USED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    choose_device("cpu", "auto")
    torch.set_num_threads(1)
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        watcher = os.fork()
        if watcher == 0:
            _watch(order)
        print(json.dumps({"pid": _pid_of(Path(order["place"]))}), flush=True)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _pid_of(place: Path) -> int:
    while True:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((place / "pid").read_text())
        time.sleep(0.002)


def _watch(order: dict[str, Any]) -> None:
    """Fork the command, and leave its exit code where the test looks for it."""
    place = Path(order["place"])
    child = os.fork()
    if child == 0:
        _become(order, place)
    _put(place / "pid", str(child))
    _, status = os.waitpid(child, 0)
    _put(place / "code", str(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _put(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def _become(order: dict[str, Any], place: Path) -> None:
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
    os.environ.update(order["env"])
    if order["small"]:
        use_small_networks()
    if order["checkpoints"]:
        checkpoint_at_every_step()
    if order["readonly"]:
        access = os.access
        os.access = lambda path, mode, **rest: mode != os.W_OK and access(path, mode, **rest)
    within = place.parent.parent
    Strikes(place / "writes", within, order["fault"], order["at"], order["beyond"]).install()
    sys.argv = ["sfr", *order["words"]]
    code = 0
    try:
        if order["words"][0] == "draft":
            save_draft(*order["words"][1:])
        else:
            from SFRCore.cli import main

            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def use_small_networks() -> None:
    """The same foundation and student with a few hundred times fewer weights."""
    from dataclasses import replace

    from SFRCore.foundation.spec import SPECS
    from SFRCore.students import vnet

    SPECS["tiny"] = replace(
        SPECS["tiny"],
        dim=24,
        depth=2,
        heads=2,
        global_blocks=(1,),
        canvas=64,
        out_chans=16,
        mlp_dim=16,
        iou_hidden=16,
    )
    vnet._CHANNELS = (2, 4, 4, 8, 8)  # type: ignore[assignment]


def checkpoint_at_every_step() -> None:
    import SFRCore.runtime.loop

    SFRCore.runtime.loop.CHECKPOINT_SECONDS = 0.0


def save_draft(root: str, case: str) -> None:
    """What the panel does with edits: keep them as a draft."""
    from SFRCore.cli.app import print_error
    from SFRCore.errors import SFRError
    from SFRCore.study import Study
    from SFRCore.volumes import read_label

    try:
        study = Study.open(root)
        result = study.newest_result(case)
        assert result is not None
        study.save_draft(case, read_label(result.label_path, study.values))
    except SFRError as error:
        print_error(error)
        raise SystemExit(error.exit_code) from error


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


def temporary_files(root: Path) -> list[Path]:
    """What should not be left in a study when nothing runs."""
    return sorted({path for pattern in TEMPORARY for path in root.rglob(pattern)})


def check_whole(
    root: Path,
    *,
    labels: int,
    pseudo: Sequence[str],
    predicted: Sequence[str],
    models: Sequence[str] = ("foundation/foundation", "sfr-mean_teacher/student"),
) -> None:
    """A study after a complete run: valid, every label readable, every result whole, nothing left behind."""
    from SFRCore.runtime.jobs import Job
    from SFRCore.study import Study
    from SFRCore.volumes import read_image, read_label

    study = Study.open(root)
    json.loads((root / "study.json").read_text(encoding="utf-8"))
    assert {case.id: case.problem for case in study.cases.values() if case.problem} == {}
    history = [version.path for case in study.cases for version in study.history(case)]
    assert len(history) == labels
    for path in history:
        read_label(path, study.values)
    for case in study.labeled_cases():
        assert study.label_path(case.id) == study.history(case.id)[-1].path
    check_results(study, pseudo, predicted)
    for name in models:
        weights = (study.models_dir / f"{name}.safetensors").read_bytes()
        said = json.loads((study.models_dir / f"{name}.json").read_text())["weights_sha256"]
        assert hashlib.sha256(weights).hexdigest() == said
    assert not [job.run for job in Job.list(root) if job.state in ("queued", "running")]
    assert temporary_files(root) == []
    for case in study.cases:
        read_image(study.image_path(case))


def check_results(study: Any, pseudo: Sequence[str], predicted: Sequence[str]) -> None:
    """Every result is there, in its image's own grid and the study's values."""
    import SimpleITK as sitk

    from SFRCore.volumes import read_image, read_label, same_geometry

    for kind, cases in (("pseudo_label", pseudo), ("prediction", predicted)):
        for case in cases:
            result = study.result(case, kind)
            assert result is not None, f"{case} has no {kind}"
            image = read_image(study.image_path(case))
            read_label(result.label_path, study.values, like=image)
            assert same_geometry(sitk.ReadImage(str(result.confidence_path)), image)


def start_worker(study: Path, *words: str, small: bool) -> subprocess.Popen[bytes]:
    """A worker process of its own; ``small`` through this file, with small networks and many checkpoints."""
    program = [sys.executable, __file__] if small else [sys.executable, "-m", "SFRCore"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    env.pop("SFR_RUN", None)
    return subprocess.Popen(
        [*program, "run", str(study), *words],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def events_of(study: Path) -> list[dict[str, Any]]:
    """The events of the newest run."""
    from SFRCore.runtime.events import read_events

    runs = sorted(study.glob("runs/*/events.jsonl"))
    return read_events(runs[-1]) if runs else []


def wait_for(study: Path, stage: str, event: str, *, timeout: float = 120.0) -> None:
    """Until the newest run has said ``event`` in ``stage``."""
    deadline = time.monotonic() + timeout
    while True:
        said = events_of(study)
        if any((one.get("stage"), one["event"]) == (stage, event) for one in said):
            return
        over = bool(said) and said[-1]["event"] in ("error", "finished", "cancelled")
        assert time.monotonic() < deadline and not over, f"no {event} of {stage}: {said[-1:]}"
        time.sleep(0.01)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        use_small_networks()
        checkpoint_at_every_step()
        from SFRCore.cli import main

        main()
    serve()
