"""Make the virtual environment `.venv`, or bring it up to date with requirements.lock.

    python3 workflow/set_up.py [cpu|cuda]

Needs nothing but Python's standard library, asks no question and does only what is missing. Without an
argument it keeps the build of torch that is there, and takes the CPU build where there is none: that one
does not download CUDA. Written so that an old Python can read it far enough to say that it is too old.
"""

import glob
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time

OLDEST_PYTHON = (3, 11)
GIGABYTES = {"cpu": 3, "cuda": 9}
VENV = ".venv"
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "installed.txt")
LOCK = "requirements.lock"
CPU_INDEX = os.environ.get("TORCH_CPU_INDEX", "")


def main(arguments):
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if arguments[1:] or arguments not in ([], ["cpu"], ["cuda"]):
        sys.exit("error: unknown build of torch %r: legal are cpu and cuda" % " ".join(arguments))
    if sys.version_info < OLDEST_PYTHON:
        sys.exit("error: Python %s is too old: 3.11 or newer is needed" % platform.python_version())
    installed = read(STAMP).split()
    build = arguments[0] if arguments else (installed[1] if len(installed) == 2 else "cpu")
    wanted = "%s %s\n" % (hashlib.sha256(read(LOCK).encode()).hexdigest(), build)
    make_importable()
    if read(STAMP) == wanted:
        return
    free = shutil.disk_usage(".").free / 1e9
    if not installed and free < GIGABYTES[build]:
        sys.exit("error: %.1f GB are free here, but the environment needs %d GB" % (free, GIGABYTES[build]))
    started = time.time()
    make_venv()
    make_importable()
    if len(installed) == 2 and installed[1] != build:
        pip("uninstall", "--yes", "torch")  # else pip would take the one build for the other
    install_torch(build, torch_version())
    say("installing the packages of %s" % LOCK)
    failure = pip("install", "-r", LOCK)
    if failure:
        sys.exit("error: a package of %s could not be installed (%s)" % (LOCK, failure))
    write(STAMP, wanted)
    say("environment ready after %.0f s" % (time.time() - started))


def make_venv():
    if os.path.exists(PYTHON) and not pip("--version"):
        return
    say("making the environment %s with Python %s" % (VENV, platform.python_version()))
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True)
    if made.returncode:
        reason = (made.stderr or made.stdout).strip().splitlines()[:1]
        sys.exit("error: no virtual environment could be made (%s): on Debian install python3-venv" % " ".join(reason))


def make_importable():
    """Let every program of the environment import `helpers`, whatever its working directory."""
    for packages in glob.glob(os.path.join(VENV, "lib", "python*", "site-packages")):
        path = os.path.join(packages, "notebook-book.pth")
        if read(path) != os.getcwd() + "\n":
            write(path, os.getcwd() + "\n")


def install_torch(build, version):
    if build == "cuda":
        attempts = [["torch===" + version]]  # three: exactly this, not 2.13.0+cpu
    elif platform.system() != "Linux":  # where the plain package is the CPU build
        attempts = [["torch==" + version]]
    else:
        attempts = [["torch==%s+cpu" % version]]
        attempts += [["torch==%s+cpu" % version, "--extra-index-url", CPU_INDEX]] if CPU_INDEX else []
    for attempt in attempts:
        say("installing torch %s (%s build)" % (version, build))
        failure = pip("install", "--constraint", LOCK, *attempt)
        if not failure:
            return
    sys.exit("error: torch %s (%s build) could not be installed (%s)" % (version, build, failure))


def torch_version():
    return next(line for line in read(LOCK).splitlines() if line.startswith("torch==")).split("==")[1]


def pip(*arguments):
    """Run pip in the environment; returns its last error line, or nothing where all went well."""
    command = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in result.stderr.splitlines() if "ERROR" in line or "Error" in line]
    return (lines or ["pip failed"])[-1] if result.returncode else None


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def write(path, text):
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".new", path)


def say(text):
    print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
