#!/usr/bin/env python3
"""Runs the README's code blocks, so that they stay true.

    readme.py test   the block under the heading "Test"
    readme.py use    every other block, in order: blocks that start a server run in the background

A block's language is its kind: `sh` is run by bash, `python` and `js` by an interpreter that has the official SDKs,
`yaml` and `toml` blocks whose first line is `# NAME` are written to that file, anything else is only text. Blocks run in
a scratch folder, those that name `cargo`, `target/release/` or `benches/` in the checkout.
"""
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "readme"
READY_SECONDS = 1800


def blocks():
    """(heading, language, text) of each fenced block."""
    heading, out, fence = "", [], None
    for line in (ROOT / "README.md").read_text().splitlines():
        if fence is None and line.startswith("#"):
            heading = line.lstrip("#").strip()
        elif fence is None and line.startswith("```"):
            fence = (line[3:].strip(), [])
        elif line == "```" and fence is not None:
            out.append((heading, fence[0], "\n".join(fence[1]) + "\n"))
            fence = None
        elif fence is not None:
            fence[1].append(line)
    return out


def prepare():
    """A folder with the SDKs for Python and Node."""
    WORK.mkdir(parents=True, exist_ok=True)
    venv = WORK / "venv"
    if not (venv / "bin" / "openai").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "install", "--quiet", "openai", "litellm[proxy]"], check=True)
    if not (WORK / "node_modules" / "openai").exists():
        (WORK / "package.json").write_text('{"type": "module"}')
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "openai"], cwd=WORK, check=True)


def environment():
    env = dict(os.environ)
    env["PATH"] = f"{WORK / 'venv' / 'bin'}:{ROOT / 'target' / 'release'}:{env['PATH']}"
    return env


def wait_until_ready(url, process):
    for _ in range(READY_SECONDS):
        if process.poll() is not None:
            sys.exit(f"the server stopped with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(1)
    sys.exit(f"{url} was not ready within {READY_SECONDS} s")


def run(command, text, cwd):
    print(f"--- {command}\n{text}", flush=True)
    subprocess.run(command, input=text, text=True, cwd=cwd, env=environment(), check=True, timeout=5400)


def folder_of(text):
    """Commands of the checkout run there, all others in the scratch folder."""
    return ROOT if any(name in text for name in ("cargo ", "target/release/", "benches/")) else WORK


def serves(text):
    """The port of the server that a block starts, if it starts one."""
    if re.search(r"\bwick serve\b|-- serve\b", text) and "--print-config" not in text:
        port = re.search(r"--port (\d+)", text)
        return f"http://127.0.0.1:{port.group(1) if port else 8080}/readyz"
    if re.search(r"\blitellm --config\b", text):
        return "http://127.0.0.1:4000/health/liveliness"
    return None


def use():
    prepare()
    servers = []
    try:
        for heading, language, text in blocks():
            if heading == "Test":
                continue
            url = serves(text) if language == "sh" else None
            named = re.match(r"# ([\w.-]+\.(?:yaml|toml))\n", text)
            if url:
                print(f"--- in the background\n{text}", flush=True)
                cwd = folder_of(text)
                servers.append(
                    subprocess.Popen(["bash", "-c", text], cwd=cwd, env=environment(), start_new_session=True)
                )
                wait_until_ready(url, servers[-1])
            elif language == "sh":
                run(["bash", "-euo", "pipefail", "-s"], text, folder_of(text))
            elif language == "python":
                run([WORK / "venv" / "bin" / "python", "-"], text, WORK)
            elif language == "js":
                run(["node", "--input-type=module", "-"], text, WORK)
            elif language in ("yaml", "toml") and named:
                (WORK / named.group(1)).write_text(text)
    finally:
        for server in servers:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
        codes = [server.wait(timeout=60) for server in servers]
    if codes[0] != 0:
        sys.exit(f"wick was to drain and end with exit code 0, not {codes[0]}")
    print(f"all blocks ran; servers ended with {codes}")


def test():
    for heading, language, text in blocks():
        if heading == "Test" and language == "sh":
            run(["bash", "-euo", "pipefail", "-s"], text, ROOT)
            return
    sys.exit("the README has no block under `Test`")


if __name__ == "__main__":
    {"test": test, "use": use}[sys.argv[1]]()
