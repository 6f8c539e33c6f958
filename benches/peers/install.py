"""Installs the peers from their packages into a cache folder. What is there is used, so an interrupted run goes on."""
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

CACHE = pathlib.Path(os.environ.get("WICK_PEERS_CACHE", pathlib.Path.home() / ".cache" / "wick-peers"))
LLAMA_TARGETS = ["llama-server", "llama-bench", "llama-batched-bench"]
# The web page and TLS are left out: both would be fetched or need libraries, and neither is measured.
LLAMA_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
}


class Unavailable(Exception):
    """A peer cannot be had on this machine; the text says why, and stands in the table."""


def _run(what, command, log, **options):
    """Runs a command with its output in a file; the last line of it explains a failure."""
    print(f"  {what} (log: {log})", flush=True)
    with open(log, "w") as out:
        done = subprocess.run([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise Unavailable(f"{what} failed: {lines[-1] if lines else f'exit status {done.returncode}'} (log: {log})")


def python():
    """The interpreter of the peers' own virtual environment."""
    binary = CACHE / "venv" / "bin" / "python"
    if not binary.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        _run("a virtual environment", [sys.executable, "-m", "venv", CACHE / "venv"], CACHE / "venv.log")
    return binary


def _pip(*packages):
    name = packages[0]
    _run(f"pip install {' '.join(packages)}", [python(), "-m", "pip", "install", *packages], CACHE / f"pip-{name}.log")


def version_of(package):
    """The installed version of a package of the virtual environment, or None."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([python(), "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def wheel(package):
    """A package with a wheel: installed unless it is there. Returns its version."""
    if version_of(package) is None:
        _pip(package)
    return version_of(package)


def llama_cpp():
    """llama.cpp, built for this machine from the tree that the `llama-cpp-python` sdist carries. Returns its folder of
    binaries and the sdist's version."""
    root = CACHE / "llama.cpp"
    root.mkdir(parents=True, exist_ok=True)
    sources = sorted(root.glob("llama_cpp_python-*.tar.gz"))
    if not sources:
        download = [python(), "-m", "pip", "download", "--no-binary", "llama-cpp-python", "--no-deps", "-d", root]
        _run("download of llama-cpp-python", [*download, "llama-cpp-python"], root / "download.log")
        sources = sorted(root.glob("llama_cpp_python-*.tar.gz"))
    name = sources[-1].name.removesuffix(".tar.gz")
    tree, build = root / name / "vendor" / "llama.cpp", root / "build"
    binaries = build / "bin"
    if all((binaries / target).exists() for target in LLAMA_TARGETS):
        return binaries, name.removeprefix("llama_cpp_python-")
    if not shutil.which("c++"):
        raise Unavailable("llama.cpp needs a C++ compiler, and there is no `c++` here")
    if not tree.exists():
        # Elsewhere first: half a tree would be taken for a whole one by the next run.
        shutil.rmtree(root / "unpacking", ignore_errors=True)
        with tarfile.open(sources[-1]) as archive:
            archive.extractall(root / "unpacking")
        (root / "unpacking" / name).rename(root / name)
        (root / "unpacking").rmdir()
    if version_of("cmake") is None or version_of("ninja") is None:
        _pip("cmake", "ninja")
    env = dict(os.environ, PATH=f"{python().parent}:{os.environ['PATH']}")
    options = [f"-D{key}={value}" for key, value in LLAMA_OPTIONS.items()]
    _run("cmake of llama.cpp", ["cmake", "-S", tree, "-B", build, "-G", "Ninja", *options], root / "cmake.log", env=env)
    targets = [part for target in LLAMA_TARGETS for part in ("-t", target)]
    make = ["nice", "cmake", "--build", build, "-j", os.cpu_count(), *targets]
    _run("build of llama.cpp, 10 to 30 minutes", make, root / "build.log", env=env)
    return binaries, name.removeprefix("llama_cpp_python-")
