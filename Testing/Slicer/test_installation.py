"""The worker's packages: installed from wheels that the tests make, whole or not at all, and removed."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import threading
import time
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from SFRSegmentationLib import chore_process, chores, installation, pip_process, requirements, torch_build
from SFRSegmentationLib.pip_process import PipError
from SFRSegmentationLib.places import packages_folder
from SFRSegmentationLib.torch_build import Gpu, TorchBuild, choose_build
from SFRSegmentationLib.worker import worker_changes
from SFRSegmentationLib.worker_python import (
    WorkerPython,
    applied,
    find_slicer_python,
    find_worker_python,
    python_tag,
    worker_environment,
)

from SFRCore.errors import Cancelled, DiskFull, InputError
from SFRCore.runtime.locks import FileLock
from SFRCore.runtime.processes import process_alive

ROOT = Path(__file__).resolve().parents[2]
SMALL = TorchBuild("CPU", (), 1_000_000, 1_000_000)
posix_only = pytest.mark.skipif(os.name == "nt", reason="the stand-in programs are shell scripts")


def wheel(
    folder: Path, name: str, version: str = "1.0", requires: tuple[str, ...] = (), body: str = ""
) -> Path:
    """Write a wheel of one module, ``NAME.py``."""
    info = f"{name}-{version}.dist-info"
    metadata = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
    files = {
        f"{name}.py": body or f"version = {version!r}\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\n" + "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(text)}\n")
    files[f"{info}/RECORD"] = "".join(record) + f"{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_within, text in files.items():
            archive.writestr(name_within, text)
    return path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def beside(folder: Path) -> list[str]:
    """What lies in the folder of a private folder, without the lock files."""
    return sorted(p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock"))


@pytest.fixture(autouse=True)
def own_pip(tmp_path, monkeypatch):
    """No pip settings of this computer, no packages of the user."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("SFR_DATA", str(tmp_path / "données de l'utilisateur"))
    monkeypatch.delenv("SFR_PYTHON", raising=False)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    wheel(folder, "alpha", "1.2", requires=("beta>=2", "gamma; python_version < '3'"))
    wheel(folder, "beta", "2.5")
    return folder


ALPHA = [Requirement("alpha>=1")]


@pytest.fixture(scope="module")
def made(wheels, tmp_path_factory) -> Path:
    """A private folder with alpha and beta, installed once; copied by the tests that change it."""
    folder = tmp_path_factory.mktemp("data") / "packages" / "cp"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        lines: list[str] = []
        done = installation.install(
            folder, ALPHA, SMALL, python=sys.executable, wheels=wheels, say=lines.append
        )
    assert done.state == "ready" and done.versions == {"alpha": "1.2", "beta": "2.5"}
    assert any("alpha" in line for line in lines) and lines[-1] == f"Installed in {folder}."
    assert beside(folder) == ["cp"]
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(made, tmp_path / "packages" / "cp"))


def test_requirements_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert list(map(str, requirements.load_requirements())) == [
        str(Requirement(line)) for line in project["dependencies"]
    ]


def test_the_worker_sees_the_private_packages_and_slicer_does_not(made, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/of/slicer")
    env = applied(worker_environment(WorkerPython(sys.executable), made))
    assert env["PYTHONPATH"].split(os.pathsep) == [str(made), "/of/slicer"]
    assert env["PYTHONNOUSERSITE"] == "1"
    show = "import alpha, beta; print(alpha.__file__, beta.version)"
    seen = subprocess.run([sys.executable, "-c", show], env=env, capture_output=True, text=True, check=True)
    assert seen.stdout.split() == [str(made / "alpha.py"), "2.5"]
    without = subprocess.run([sys.executable, "-c", "import alpha"], capture_output=True, check=False)
    assert without.returncode == 1


def test_versions_follow_slicers_where_they_suit_and_can_be_had(tmp_path, wheels):
    shipped = requirements.constraints_of_slicer([Requirement("numpy>=1"), Requirement("requests>=999")])
    assert len(shipped) == 1 and shipped[0].startswith("numpy==")
    version = shipped[0].removeprefix("numpy==")
    both, newer = tmp_path / "both", tmp_path / "newer"
    for folder, versions in ((both, (version, "99.0")), (newer, ("99.0",))):
        for one in versions:
            wheel(folder, "numpy", one)
    wanted = [Requirement("numpy>=1")]
    folder, lines = packages_folder(), []
    done = installation.install(folder, wanted, SMALL, python=sys.executable, wheels=both)
    assert done.versions == {"numpy": version}
    done = installation.install(folder, wanted, SMALL, python=sys.executable, wheels=newer, say=lines.append)
    assert done.versions == {"numpy": "99.0"}
    assert any("trying without them" in line for line in lines)


def test_a_users_own_targets_and_constraints_stay_with_the_user(tmp_path, monkeypatch):
    theirs = ("PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_CONSTRAINT", "PIP_REQUIREMENT")
    for name in (*theirs, "PIP_CERT"):
        monkeypatch.setenv(name, "/of/the/user")
    env = pip_process.pip_environment(tmp_path)
    assert not set(theirs) & set(env) and env["PIP_CERT"] == "/of/the/user"


def test_a_failed_installation_leaves_the_earlier_one(copy, tmp_path):
    with pytest.raises(PipError, match="no package beta") as caught:
        wheel(tmp_path / "some", "alpha", "3.0", requires=("beta>=7",))
        installation.install(copy, ALPHA, SMALL, python=sys.executable, wheels=tmp_path / "some")
    assert "put the missing package into it" in caught.value.hint
    assert installation.examine(copy, ALPHA).versions["alpha"] == "1.2"
    assert beside(copy) == ["cp"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no packages"):
        installation.install(copy, ALPHA, SMALL, python=sys.executable, wheels=tmp_path / "none")


class Index(BaseHTTPRequestHandler):
    """A package index, and at the same time the proxy on the way; waits while ``holding`` is clear."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        server.holding.wait(30)
        path = self.path.removeprefix("http://packages.invalid")
        parts = [part for part in path.split("/") if part]
        if path.endswith(".whl"):
            body = (server.root / parts[0] / parts[-1].replace("%2B", "+")).read_bytes()
        else:
            names = sorted(p.name for p in (server.root / parts[0]).glob(f"{parts[1]}-*.whl"))
            links = "".join(f'<a href="/{parts[0]}/files/{n.replace("+", "%2B")}">{n}</a>' for n in names)
            body = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self):
        self.server.asked.append(self.path)
        self.server.holding.wait(30)
        self.send_error(502)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index at http://packages.invalid that only a proxy, named by the usual variable, knows."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.root, server.asked, server.holding = tmp_path / "index", [], threading.Event()
    server.holding.set()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for variable in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("PIP_INDEX_URL", "http://packages.invalid/usual/")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "packages.invalid")
    yield server
    server.holding.set()
    server.shutdown()
    server.server_close()


def test_behind_a_proxy_the_build_for_the_gpu_wins_over_a_newer_one(index):
    wheel(index.root / "usual", "torch", "2.12.0")
    wheel(index.root / "usual", "alpha", "1.2", requires=("torch",))
    wheel(index.root / "cu128", "torch", "2.11.0+cu128")
    (index.root / "cu130").mkdir()
    build = TorchBuild("CUDA", ("http://packages.invalid/cu130", "http://packages.invalid/cu128"), 1000, 1000)
    wanted = [Requirement("torch>=2"), *ALPHA]
    done = installation.install(packages_folder(), wanted, build, python=sys.executable)
    assert (done.state, done.build) == ("ready", "CUDA")
    assert done.versions == {"torch": "2.11.0+cu128", "alpha": "1.2"}
    assert all(path.startswith("http://packages.invalid/") for path in index.asked)


def test_cancelling_ends_pip_and_leaves_nothing(index, copy, monkeypatch):
    wheel(index.root / "usual", "alpha", "9.0")
    index.holding.clear()
    started: list[int] = []
    popen = subprocess.Popen

    def noted(*arguments, **options):
        process = popen(*arguments, **options)
        started.append(process.pid)
        return process

    monkeypatch.setattr(pip_process.subprocess, "Popen", noted)

    def check():
        if index.asked:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        installation.install(copy, ALPHA, SMALL, python=sys.executable, check=check)
    assert started and not any(process_alive(pid) for pid in started)
    assert beside(copy) == ["cp"] and installation.examine(copy, ALPHA).versions["alpha"] == "1.2"


def test_without_room_nothing_begins(tmp_path, monkeypatch, wheels):
    monkeypatch.setattr(installation, "free_space", lambda path: 5_000_000)
    large = TorchBuild("CPU", (), 3_000_000, 4_000_000)
    with pytest.raises(DiskFull, match="not enough room") as caught:
        installation.install(packages_folder(), ALPHA, large, python="/no/such/python")
    assert "SFR_DATA" in caught.value.hint and not packages_folder().exists()
    assert 100 < installation.space_needed(large, wheels) < 10_000


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("ERROR: Could not install: OSError: [Errno 28] No space left on device", DiskFull, "disk"),
        ("WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
         "ERROR: No matching distribution found for torch>=2.8", PipError, "could not be reached"),
        ("SSLError(SSLCertVerificationError(1, 'certificate verify failed'))", PipError, "not trusted"),
        ("ProxyError: Tunnel failed: 407 Proxy Authentication Required", PipError, "name and password"),
        ("ERROR: No matching distribution found for torch>=2.8", PipError, r"no package torch>=2\.8"),
        ("ERROR: ResolutionImpossible: for help visit", PipError, "do not fit together"),
        ("ERROR: Could not install packages: [Errno 13] Permission denied: '/x'", PipError, "read-only"),
        ("Traceback\nERROR: something new", PipError, r"exit code 7\): something new\."),
        ("", PipError, "no reason given"),
    ],
)  # fmt: skip
def test_pips_failures_in_plain_words(said, kind, words):
    error = pip_process.explain(said.splitlines(), 7)
    assert type(error) is kind and error.hint
    with pytest.raises(kind, match=words):
        raise error


@posix_only
def test_a_python_without_pip_is_said(tmp_path, wheels):
    bare = script(tmp_path / "python", 'echo "No module named pip" >&2; exit 1\n')
    with pytest.raises(InputError, match="has no pip"):
        installation.install(packages_folder(), ALPHA, SMALL, python=str(bare), wheels=wheels)
    assert beside(packages_folder()) == []


def test_states_of_a_folder(copy):
    assert installation.examine(copy.with_name("other"), ALPHA).state == "missing"
    newer = installation.examine(copy, [Requirement("alpha>=2")])
    assert newer.state == "outdated" and [str(gap) for gap in newer.gaps] == ["alpha>=2 (there is 1.2)"]
    record = (copy / installation.RECORD).read_bytes()
    (copy / installation.RECORD).unlink()
    assert installation.examine(copy, ALPHA).state == "broken"
    (copy / installation.RECORD).write_bytes(record)
    assert requirements.incomplete_packages(copy) == []
    (copy / "alpha.py").write_text("cut")
    assert requirements.incomplete_packages(copy) == ["alpha"]
    for path in copy.glob("beta*"):
        path.unlink() if path.is_file() else [p.unlink() for p in path.iterdir()] and path.rmdir()
    found = installation.examine(copy, ALPHA)
    assert found.state == "broken" and [(g.requirement, g.asked_by) for g in found.gaps] == [
        ("beta>=2", "alpha")
    ]


def test_two_installations_do_not_meet(copy, wheels):
    with FileLock(copy.with_name(f".{copy.name}.lock"), purpose="installation of SFR's packages"):
        assert installation.examine(copy, ALPHA).state == "installing"
        with pytest.raises(InputError, match="installation of SFR's packages"):
            installation.install(copy, ALPHA, SMALL, python=sys.executable, wheels=wheels)
    assert installation.examine(copy, ALPHA).state == "ready"


def test_removing_takes_all_of_it_and_what_a_killed_installation_left(copy):
    left = copy.with_name(".cp.sfr-tmp-999999999-" + installation.process_mark().split("-")[1] + "n0")
    (left / "packages").mkdir(parents=True)
    other = copy.with_name("cp27-old")
    other.mkdir()
    (other / installation.RECORD).write_text("{}")
    assert installation.other_installations(copy) == [other]
    size = installation.folder_size(copy)
    assert installation.remove(copy) == size > 100
    assert beside(copy) == ["cp27-old"]
    assert installation.remove(copy) == 0


USER = """
import sys, time
from SFRCore.runtime.leases import in_use
with in_use(sys.argv[1], "'sfr run'"):
    print("used", flush=True)
    time.sleep(60)
"""


def test_packages_that_a_job_uses_stay(copy, wheels):
    """Also where the job is not one of the open study, or of another Slicer; a killed one uses nothing."""
    user = subprocess.Popen([sys.executable, "-c", USER, copy], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert user.stdout.readline() == b"used\n"
        for change in (
            lambda: installation.remove(copy),
            lambda: installation.install(copy, ALPHA, SMALL, python=sys.executable, wheels=wheels),
        ):
            with pytest.raises(InputError, match="is in use by 'sfr run' on") as caught:
                change()
            assert caught.value.code == "in_use" and "cancel it" in caught.value.hint
        assert installation.examine(copy, ALPHA).state == "ready"
    finally:
        user.kill()
        user.wait()
    assert installation.remove(copy) > 100 and beside(copy) == []
    assert [path.name for path in copy.parent.iterdir()] == [f".{copy.name}.lock"]


def test_the_worker_is_told_which_packages_it_uses():
    assert worker_changes(WorkerPython(sys.executable))["SFR_PACKAGES"] == str(packages_folder())
    assert "SFR_PACKAGES" not in worker_changes(WorkerPython("/mine/python", own=True))


@posix_only
def test_which_python_computes(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_slicer_python() == sys.executable
    launcher = script(tmp_path / "PythonSlicer", "")
    assert find_slicer_python() == str(launcher)
    real = script(tmp_path / "python-real", "")
    assert find_worker_python() == WorkerPython(str(real))
    own = script(tmp_path / "own" / "python3", "")
    monkeypatch.setenv("SFR_PYTHON", str(own))
    assert find_worker_python() == WorkerPython(str(own), own=True)
    monkeypatch.setenv("SFR_PYTHON", str(tmp_path / "gone"))
    with pytest.raises(InputError, match="SFR_PYTHON names .*gone, which is not a program"):
        find_worker_python()
    assert python_tag().startswith(f"cp3{sys.version_info.minor}-")


def test_a_python_of_the_users_own_gets_nothing_of_slicers(monkeypatch):
    for name in ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "/slicer")
    own = WorkerPython("/usr/bin/python3", own=True)
    env = applied(worker_environment(own, Path("/private")))
    assert not {"PYTHONHOME", "PYTHONPATH"} & env.keys()
    startup = {"HOME": os.environ["HOME"], "LD_LIBRARY_PATH": "/of/the/user", "PYTHONPATH": "/mine"}
    env = applied(worker_environment(own, None, startup=startup))
    assert env["LD_LIBRARY_PATH"] == "/of/the/user" and "PYTHONPATH" not in env and "PATH" not in env


@posix_only
@pytest.mark.parametrize("spelling", ["CUDA Version: 12.9", "CUDA UMD Version: 13.1"])
def test_the_gpu_is_asked_of_its_driver(tmp_path, monkeypatch, spelling):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    assert not (tmp_path / "nvidia-smi").exists()
    script(
        tmp_path / "nvidia-smi",
        f'if [ -n "$1" ]; then echo "NVIDIA RTX 2000, Ada, 16380"; else echo "| Driver 580 {spelling} |"; fi',
    )
    gpu = torch_build.find_gpu()
    assert gpu is not None and gpu.name == "NVIDIA RTX 2000, Ada" and gpu.memory == 16380 << 20
    assert gpu.cuda == tuple(map(int, spelling.split()[-1].split(".")))
    script(tmp_path / "nvidia-smi", "echo no driver; exit 9\n")
    assert torch_build.find_gpu() is None


@pytest.mark.parametrize(
    ("cuda", "platform", "name", "indexes"),
    [
        (None, "linux", "CPU", ["cpu"]),
        (None, "win32", "CPU", []),
        (None, "darwin", "Apple", []),
        ((11, 8), "linux", "CPU", ["cpu"]),
        ((12, 4), "linux", "CUDA", ["cu126"]),
        ((12, 9), "win32", "CUDA", ["cu128", "cu126"]),
        ((13, 0), "linux", "CUDA", []),
        ((13, 2), "win32", "CUDA", ["cu130", "cu128", "cu126"]),
    ],
)
def test_the_build_that_suits(cuda, platform, name, indexes):
    build = choose_build(None if cuda is None else Gpu("A GPU", 8 << 30, cuda), platform)
    assert build.name == name and [index.rpartition("/")[2] for index in build.indexes] == indexes
    assert (build.disk > 4e9) == (name == "CUDA")


def test_a_chore_is_followed_to_its_end(tmp_path):
    chore = chores.start_chore("survey", folder=str(tmp_path))
    assert chore.poll() == [] and chore.state == "running"
    assert chore.wait(20) == "done", chore.error
    assert chore.result["free"] > 0 and chore.result["build"] in ("CPU", "CUDA", "Apple")
    assert not chore.folder.exists() and chore.poll() == []


def test_a_chore_that_fails_says_why():
    chore = chores.start_chore("checkpoint", name="vit_x")
    assert chore.wait(20) == "failed"
    assert str(chore.error) == "There is no checkpoint called vit_x to download." and chore.error.hint
    crashed = chores.Chore("thing", [sys.executable, "-c", "1 / 0"], dict(os.environ), json_lines=True)
    assert crashed.wait(20) == "failed" and "ZeroDivisionError" in str(crashed.error)
    with pytest.raises(InputError, match="could not be started"):
        chores.Chore("thing", ["/no/such/program"], {}, json_lines=True)


def test_pips_raw_progress_becomes_progress(tmp_path, monkeypatch):
    said = []
    reporter = chore_process.Reporter(tmp_path)
    monkeypatch.setattr(reporter, "write", lambda **message: said.append(message))
    for line in ("Downloading torch-2.14.0.whl (554 MB)", "Progress 1000 of 5000", "Progress 5000 of 5000"):
        reporter.say(line)
    assert said == [
        {"say": "Downloading torch-2.14.0.whl (554 MB)"},
        {"done": 1000, "total": 5000},
        {"done": 5000, "total": 5000},
    ]
    (tmp_path / "stop").touch()
    with pytest.raises(Cancelled):
        reporter.say("Progress 1 of 5000")


def test_installing_as_a_chore_is_cancelled_with_all_its_processes(index):
    for requirement in requirements.load_requirements():
        wheel(index.root / "usual", requirement.name.replace("-", "_"), "99.0")
    index.holding.clear()
    folder = packages_folder()
    chore = chores.start_chore("install", folder=str(folder), python=sys.executable, wheels=None)
    deadline = time.monotonic() + 20
    while not index.asked:
        assert time.monotonic() < deadline and chore.state == "running", chore.error
        time.sleep(0.02)
        chore.poll()
    chore.cancel()
    assert chore.stopping and chore.wait(10) == "cancelled"
    assert isinstance(chore.error, Cancelled) and beside(folder) == []
    assert any("Looking for a GPU" in line for line in chore.lines)
