"""Each server that is measured: how it is installed, started and asked.

Every one gets as many threads as the others and the setting its documentation recommends for this load; `note` says
what the reader of the table must know. A peer has three tasks: `engine` (prefill and decode without serving), `served`
(a closed loop of clients) and `start` (a cold process to its first token). Each runs in fresh processes, and these end.
"""
import json
import os
import pathlib
import subprocess
import time
import urllib.error
import urllib.request

import install
import load
import process

HERE = pathlib.Path(__file__).resolve().parent
READY_SECONDS = 300


class Peer:
    """What all have in common. `setup` installs and raises `install.Unavailable`; afterwards `version` is set."""

    name = note = version = ""

    def __init__(self, args):
        self.threads = args.threads
        self.logs = install.CACHE / "logs"


class Http(Peer):
    """Peers that are servers: started on a free port, loaded over HTTP."""

    def command(self, file, port, spec):
        raise NotImplementedError

    def running(self, file, spec):
        self.port = process.free_port()
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{self.name}.log"
        return process.Running(self.command(file, self.port, spec), log, getattr(self, "env", None))

    def ready(self, server):
        """Waits until the server is ready; returns its name of the model."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            server.check()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                listed = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=5).read()
                return json.loads(listed)["data"][0]["id"]
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"not ready after {READY_SECONDS} s")

    def served(self, file, spec):
        with self.running(file, spec) as server:
            model = self.ready(server)
            load.over_http(self.port, model, 2)(load.text(16, "warm-up"))
            waiting = load.prompts(spec["seed"], spec["requests"], spec["input"], spec["shared"])
            send = load.over_http(self.port, model, spec["output"])
            answers, seconds = load.closed_loop(send, waiting, spec["clients"], spec["timeout"])
            server.check()
            return load.figures(answers, seconds, spec["output"]) | {"peak_mib": server.peak_mib()}

    def start(self, file, spec):
        with self.running(file, spec) as server:
            # A server that is not there refuses the connection, one that still loads answers 503: asked again at once.
            send = load.over_http(self.port, self.served_name(file), 1)
            deadline = server.started + READY_SECONDS
            while True:
                try:
                    seconds = send("Hello").times[0] - server.started
                    return {"seconds": seconds, "peak_mib": server.peak_mib()}
                except (OSError, load.Refused) as e:
                    server.check()
                    if getattr(e, "status", 503) != 503 or time.perf_counter() > deadline:
                        raise
                    time.sleep(0.005)

    def served_name(self, file):
        """The model's name in a request before the server could be asked for it."""
        return "default"


class Wick(Http):
    name = "wick"

    def __init__(self, args, name="wick", options=()):
        super().__init__(args)
        self.binary, self.name = pathlib.Path(args.wick), name
        self.options = [*options, *args.wick_args.split()]
        self.note = " ".join(self.options) or "default settings"

    def setup(self):
        if not self.binary.exists():
            raise install.Unavailable(f"there is no {self.binary}: build it, or name another with --wick")
        self.version = process.output_of([self.binary, "--version"], 20).split()[-1]

    def engine(self, file, spec):
        def rates(batch, prompt, output):
            command = [self.binary, "--log", "error", "bench", file, "--threads", self.threads, "--json", "-"]
            # `--prefill` is shared out among the sequences. The others warm up first, and their caches are written before
            # they are timed (llama.cpp clears its own, OpenVINO has used its own for the batch before): here the first
            # of three runs does that, of which the median is taken.
            command += ["--batch", batch, "--prefill", batch * prompt, "--decode", output, *self.options, "--repeat", 3]
            return json.loads(process.output_of(command, spec["timeout"]))["rows"][0]

        found = {"prefill": rates(1, spec["prefill"], 2)["prefill_tokens_per_second"]}
        for batch, output in spec["decode"]:
            found[f"decode-{batch}"] = rates(batch, spec["context"], output)["decode_tokens_per_second"]
        return found

    def command(self, file, port, spec):
        return [self.binary, "serve", file, "--port", port, "--threads", self.threads, "--log", "warn", *self.options]

    def served_name(self, file):
        return pathlib.Path(file).stem


class LlamaCpp(Http):
    name = "llama.cpp"
    note = "GGML_NATIVE; llama-bench, llama-batched-bench (shared prompt) and llama-server with a slot for each client"

    def setup(self):
        self.binaries, sdist = install.llama_cpp()
        self.version = f"tree of llama-cpp-python {sdist}"

    def engine(self, file, spec):
        threads = ["-t", self.threads]
        bench = [self.binaries / "llama-bench", "-m", file, *threads, "-p", spec["prefill"], "-n", "0", "-r", "1"]
        rows = json.loads(process.output_of([*bench, "-o", "json"], spec["timeout"]))
        found = {"prefill": rows[0]["avg_ts"]}
        for batch, output in spec["decode"]:
            context = batch * (spec["context"] + output)
            command = [self.binaries / "llama-batched-bench", "-m", file, *threads, "-tb", self.threads, "-c", context]
            # The prompt is computed once and copied to all sequences (-pps): only decoding is timed here.
            command += ["-npp", spec["context"], "-ntg", output, "-npl", batch, "-pps", "--output-format", "jsonl"]
            lines = process.output_of(command, spec["timeout"]).splitlines()
            rows = [json.loads(line) for line in lines if line.startswith("{")]
            found[f"decode-{batch}"] = rows[0]["speed_tg"]
        return found

    def command(self, file, port, spec):
        slots = spec["clients"]
        # Room for a whole request in each slot, and some tokens more: the tokenizer may find more than we count.
        context = slots * (spec["input"] + spec["output"] + 64)
        command = [self.binaries / "llama-server", "-m", file, "-t", self.threads, "-tb", self.threads]
        return [*command, "-np", slots, "-c", context, "--host", "127.0.0.1", "--port", port]


class InProcess(Peer):
    """Peers that are libraries: a driver script runs them in the virtual environment and prints its figures."""

    package = driver = ""
    options = {}
    env = {}
    engine_seconds = 240

    def setup(self):
        self.python = install.python()
        self.version = install.wheel(self.package)

    def _drive(self, file, spec):
        spec = spec | self.options | {"file": str(file), "threads": self.threads}
        env = dict(os.environ, **{key: value.format(threads=self.threads) for key, value in self.env.items()})
        try:
            output = process.output_of([self.python, HERE / self.driver, json.dumps(spec)], spec["timeout"], env)
        except subprocess.TimeoutExpired as e:
            # What was measured before the time was over stands.
            output = (e.stdout or b"").decode()
            if spec["task"] != "engine" or not output.strip():
                raise
            output += json.dumps({"stopped": f"not finished after {spec['timeout']} s"})
        # The libraries may print lines of their own.
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        return {name: value for line in lines for name, value in line.items()}

    def engine(self, file, spec):
        return self._drive(file, spec | {"timeout": min(spec["timeout"], self.engine_seconds)})

    def served(self, file, spec):
        return self._drive(file, spec)

    def start(self, file, spec):
        began = time.perf_counter()
        return self._drive(file, spec) | {"seconds": time.perf_counter() - began}


class OpenVino(InProcess):
    name, package, driver = "OpenVINO GenAI", "openvino-genai", "drive_openvino.py"
    note = "in process, no HTTP; KV f16 as the others have (its default is u8)"
    options = {"cache_gib": 1, "kv": "f16"}


class MistralRs(InProcess):
    name, package, driver = "mistral.rs", "mistralrs", "drive_mistralrs.py"
    note = "in process, no HTTP; its wheel is built for any x86-64 processor, without AVX"
    # Its kernels use no vector instructions in this build: what it has not done by then is not waited for.
    engine_seconds = 45
    env = {"RAYON_NUM_THREADS": "{threads}", "CANDLE_NUM_THREADS": "{threads}", "HF_HUB_OFFLINE": "1"}


def choose(names, args):
    """The peers of these names, in this order."""
    known = {
        "wick": lambda: Wick(args),
        "wick-exact": lambda: Wick(args, "wick-exact", ["--activations", "exact"]),
        "wick-int8": lambda: Wick(args, "wick-int8", ["--activations", "int8"]),
        "llama.cpp": lambda: LlamaCpp(args),
        "openvino": lambda: OpenVino(args),
        "mistral.rs": lambda: MistralRs(args),
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"unknown peer {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[name]() for name in names]
