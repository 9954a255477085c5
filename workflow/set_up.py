"""Make the virtual environment `.venv`, or bring it up to date with requirements.lock and pyproject.toml.

    python3 workflow/set_up.py [cpu|cuda]

Needs nothing but Python's standard library, asks no question and does only what is missing. Without an
argument it keeps the build of torch that is there, and takes the CPU build where there is none: that one
does not download CUDA. `helpers` and `studies` are installed editable, so that every program of the
environment imports those of this checkout. Written so that an old Python can read it far enough to say
that it is too old.
"""

import glob
import hashlib
import json
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
PACKAGE_STAMP = os.path.join(VENV, "package.txt")
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
    ready, started = read(STAMP) == wanted, time.time()
    if not ready:
        install_packages(installed, build)
        write(STAMP, wanted)
    make_importable()
    if not ready:
        say("environment ready after %.0f s" % (time.time() - started))


def install_packages(installed, build):
    free = shutil.disk_usage(".").free / 1e9
    if not installed and free < GIGABYTES[build]:
        sys.exit("error: %.1f GB are free here, but the environment needs %d GB" % (free, GIGABYTES[build]))
    make_venv()
    if len(installed) == 2 and installed[1] != build:
        pip("uninstall", "--yes", "torch")  # else pip would take the one build for the other
    install_torch(build, torch_version())
    say("installing the packages of %s" % LOCK)
    failure = pip("install", "-r", LOCK)
    if failure:
        sys.exit("error: a package of %s could not be installed (%s)" % (LOCK, failure))


def make_venv():
    if os.path.exists(PYTHON) and not pip("--version"):
        return
    say("making the environment %s with Python %s" % (VENV, platform.python_version()))
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True)
    if made.returncode:
        reason = (made.stderr or made.stdout).strip().splitlines()[:1]
        sys.exit("error: no virtual environment could be made (%s): on Debian install python3-venv" % " ".join(reason))


def make_importable():
    """Let every program of the environment import `helpers` and `studies` of this checkout, whatever its folder."""
    for path in glob.glob(os.path.join(VENV, "lib", "python*", "site-packages", "notebook-book.pth")):
        os.remove(path)  # of an earlier set-up: it put the workflow and the tests on everybody's path too
    wanted = package_digest()
    if read(PACKAGE_STAMP) == wanted:
        return
    say("installing helpers and studies")
    # What they need came with the lock, setuptools too.
    failure = pip("install", "--no-deps", "--no-build-isolation", "--editable", ".")
    if failure:
        sys.exit("error: helpers and studies could not be installed (%s)" % failure)
    write(PACKAGE_STAMP, wanted)


def package_digest():
    """What an editable installation hangs on: where the checkout is, and what pyproject.toml says of the package."""
    import tomllib  # an old Python has none

    tables = tomllib.loads(read("pyproject.toml"))
    described = [os.getcwd(), tables["build-system"], tables["project"], tables["tool"]["setuptools"]]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest() + "\n"


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
