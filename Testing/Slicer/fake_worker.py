#!/usr/bin/env python3
"""A worker without the heavy packages, for following and stopping: it holds the study and writes events as a
real one.

It is started as the worker's Python would be, ``fake_worker.py -m SFRCore COMMAND STUDY ...``;
$FAKE_WORKER says how it behaves: "steady" obeys, "stubborn" ignores every request and has a child, "dies"
is killed by the system, "fails" ends with an error, "full" finds no room on the disk, "long" would take days,
"flood" says very much, "quick" finishes.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from SFRCore.errors import Cancelled, InputError, SFRError  # noqa: E402
from SFRCore.runtime.worker import Worker  # noqa: E402

CASES = [f"case_{number:02d}" for number in range(1, 4)]


def main():
    _m, _package, command, study, *words = sys.argv[1:]
    mode = os.environ.get("FAKE_WORKER", "quick")
    try:
        with Worker(study, command, {}) as worker:
            worker.stage = "finetune"
            if mode == "long" and "--yes" not in words:
                raise InputError(
                    "This run would take about 40 hours on a CPU.", hint="Use a GPU.", code="long_run"
                )
            if mode == "flood":
                for step in range(60_000):
                    worker.events.emit("progress", step=step + 1, total=60_000, loss=1.0, eta_s=5.0)
            if mode == "stubborn":
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                (worker.run_dir / "child").write_text(str(child.pid))
            for step in range(5 if mode in ("quick", "fails", "full", "long", "flood") else 10_000):
                worker.events.emit("progress", step=step + 1, total=10_000, loss=1.0 / (step + 1), eta_s=90.0)
                if mode == "dies" and step == 3:
                    with open(worker.folder.events_file, "ab") as stream:
                        stream.write(b'{"time": 1, "event": "progr')
                    os.kill(os.getpid(), signal.SIGKILL)
                if mode == "full" and step == 3:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights.safetensors")
                if mode == "fails" and step == 3:
                    raise InputError("case_02 cannot be read.", hint="Look at the file.")
                time.sleep(0.05)
                if mode != "stubborn":
                    worker.check()
            for case in CASES:
                worker.events.emit("case", id=case)
            worker.events.emit("finished_stage")
    except Cancelled:
        return 3
    except (SFRError, OSError):
        return 2
    return 0


sys.exit(main())
