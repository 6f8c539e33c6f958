"""Child processes and what the system knows of them: ports, logs, memory, the CPU time that others take."""
import os
import pathlib
import socket
import subprocess
import time


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def peak_mib(pid):
    """The most memory a running process has held so far (resident, its maps of files included), in MiB."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/status has no VmHWM")


def warm(path):
    """Reads a file, so that it lies in the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def output_of(command, timeout, env=None):
    """Standard output of a command that must succeed; a failure is told by the end of its standard error."""
    command = [str(c) for c in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise RuntimeError(f"{pathlib.Path(command[0]).name} failed: {lines[-1] if lines else done.returncode}")
    return done.stdout


class Running:
    """A server as a context: its process is ended when the context is left."""

    def __init__(self, command, log, env=None):
        self.command, self.log, self.env = [str(c) for c in command], log, env

    def __enter__(self):
        self.out = open(self.log, "w")
        self.started = time.perf_counter()
        self.child = subprocess.Popen(self.command, stdout=self.out, stderr=self.out, env=self.env)
        return self

    def check(self):
        """Raises when the process has ended by itself."""
        if self.child.poll() is not None:
            lines = pathlib.Path(self.log).read_text(errors="replace").strip().splitlines()
            why = lines[-1] if lines else self.child.returncode
            raise RuntimeError(f"{self.command[0]} ended: {why} (log: {self.log})")

    def peak_mib(self):
        return peak_mib(self.child.pid)

    def __exit__(self, *_):
        self.child.terminate()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.out.close()


def _busy():
    """CPU seconds all cores have worked since the machine started."""
    fields = [int(f) for f in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    # user, nice, system, idle, iowait, irq, softirq, steal
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")


class Others:
    """How many cores worked for other processes (and, on a virtual machine, for other machines) during a context."""

    def __enter__(self):
        self.start = time.perf_counter(), _busy(), sum(os.times()[:4])
        return self

    def __exit__(self, *_):
        began, busy, own = self.start
        others = _busy() - busy - (sum(os.times()[:4]) - own)
        self.cores = max(0.0, others / (time.perf_counter() - began))


def wait_until_quiet(seconds, limit=0.1):
    """Waits until other processes leave the cores alone for a second, at most so many seconds."""
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        with Others() as others:
            time.sleep(1)
        if others.cores < limit:
            return
