//! What people run against wick, as they run it: the official SDKs, agents, a gateway, an evaluation harness. Each test
//! installs its clients (pip, npm) into `target/clients`, starts `wick serve` and runs suites of tests/clients/ (whose
//! README says what they cover).
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const MODEL: &str = "smollm2-135m";
/// Calls tools.
const TOOL_MODEL: &str = "qwen2.5-coder-1.5b";
const EMBEDDER: &str = "all-minilm-l6-v2";
/// Another name of the first model, as Workers AI's clients write them.
const FURTHER_NAME: &str = "@cf/acme/first";
/// Suites of the Python SDKs for [`TOOL_MODEL`].
const TOOL_SUITES: [&str; 5] =
    ["test_tools.py", "test_kept.py", "test_messages.py", "test_agents.py", "test_reviewer.py"];
const GATEWAY_SUITE: &str = "test_litellm.py";
const HARNESS_SUITE: &str = "test_lm_eval.py";

/// A `wick serve` on a free port; ended when dropped. One at a time: each has all cores and memory.
struct Server {
    process: Child,
    url: String,
    _turn: File,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let turn = lock("server");
        let mut process = Command::new(env!("CARGO_BIN_EXE_wick"))
            .arg("serve")
            .args(arguments)
            .args(["--port", "0", "--log", "warn"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting wick");
        let stdout = BufReader::new(process.stdout.take().expect("stdout is piped"));
        let url = stdout
            .lines()
            .map_while(Result::ok)
            .find(|line| line.starts_with("wick serves "))
            .and_then(|line| line.split_once(" at ").map(|(_, url)| url.trim_end_matches("/v1").to_owned()))
            .expect("wick says where it serves");
        Self { process, url, _turn: turn }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `target/clients/NAME`.
fn folder(name: &str) -> PathBuf {
    let path = root().join("target/clients").join(name);
    std::fs::create_dir_all(&path).expect("making the clients' folder");
    path
}

/// Held until dropped; by one test, whether they are threads or processes.
fn lock(name: &str) -> File {
    let file = File::create(folder("locks").join(name)).expect("making a lock's file");
    file.lock().expect("waiting for a lock");
    file
}

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?} ended with {status}");
}

/// The `bin` of a virtual environment that has what `requirements` of tests/clients names. Each is its own: what they pin
/// differs.
fn venv(name: &str, requirements: &str) -> PathBuf {
    let _one = lock(name);
    let venv = folder(name);
    if !venv.join("bin/python").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    }
    let requirements = root().join("tests/clients").join(requirements);
    run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "-r"]).arg(requirements));
    venv.join("bin")
}

/// Runs suites of tests/clients/python against `wick serve SERVE`, with the official SDKs.
fn pytest(serve: &[&str], arguments: &[&str], environment: &[(&str, String)]) {
    let python = venv("python", "python/requirements.txt").join("python");
    let server = Server::start(serve);
    run(Command::new(python)
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5"])
        .args(arguments)
        .current_dir(root().join("tests/clients/python"))
        .env("WICK_URL", &server.url)
        .env("WICK_MODEL", serve[0])
        .env("WICK_EMBEDDER", EMBEDDER)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .envs(environment.iter().map(|(name, value)| (name, value))));
}

#[test]
fn official_python_sdks() {
    let others = [&TOOL_SUITES[..], &[GATEWAY_SUITE, HARNESS_SUITE]].concat();
    let mut arguments: Vec<&str> = others.iter().flat_map(|suite| ["--ignore", suite]).collect();
    arguments.push(".");
    let environment = [("WICK_FURTHER_NAME", FURTHER_NAME.to_owned())];
    pytest(&[MODEL, EMBEDDER, "--also", FURTHER_NAME], &arguments, &environment);
}

/// Tools and kept responses with the official SDKs, the agents SDK with an MCP server, and a code reviewer.
#[test]
fn python_agents() {
    pytest(&[TOOL_MODEL, "--responses-store", "100"], &TOOL_SUITES, &[]);
}

/// LiteLLM's proxy in front of a wick that wants a key and has a short queue.
#[test]
fn litellm_proxy() {
    let proxy = venv("litellm", "python/requirements-litellm.txt").join("litellm");
    let keys = folder("keys").join("keys.toml");
    let _ = std::fs::remove_file(&keys);
    let made = Command::new(env!("CARGO_BIN_EXE_wick")).args(["key", "gateway", "--append"]).arg(&keys).output();
    let made = made.expect("running `wick key`");
    let key = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    let keys = keys.to_str().expect("the checkout's path is text");
    let serve = [MODEL, EMBEDDER, "--keys", keys, "--max-running", "1", "--queue-requests", "1"];
    let environment = [("WICK_API_KEY", key), ("LITELLM", proxy.display().to_string())];
    pytest(&serve, &[GATEWAY_SUITE], &environment);
}

/// lm-eval's `local-completions` and `local-chat-completions` on tasks of this repository.
#[test]
fn lm_eval_harness() {
    let harness = venv("lm-eval", "python/requirements-lm-eval.txt").join("lm-eval");
    let environment = [("LM_EVAL", harness.display().to_string())];
    pytest(&[MODEL], &[HARNESS_SUITE], &environment);
}

/// The official SDK for Node, and Vercel's AI SDK.
#[test]
fn node_sdks() {
    let work = folder("node");
    let suite = root().join("tests/clients/node");
    for file in ["package.json", "package-lock.json", "openai.test.mjs", "ai-sdk.test.mjs"] {
        std::fs::copy(suite.join(file), work.join(file)).expect("copying the suite");
    }
    run(Command::new("npm").args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(&work));
    let server = Server::start(&[MODEL, EMBEDDER, "--responses-store", "100"]);
    // Its own Node, from npm: both SDKs want a newer one than most systems have.
    run(Command::new(work.join("node_modules/.bin/node"))
        .args(["--test", "openai.test.mjs", "ai-sdk.test.mjs"])
        .current_dir(&work)
        .env("WICK_URL", &server.url)
        .env("WICK_MODEL", MODEL)
        .env("WICK_EMBEDDER", EMBEDDER));
}

/// Schemathesis, which makes requests of what `/openapi.json` says, right and wrong ones: no answer may be a 5xx, or one that
/// the document does not have. What it does is in tests/clients/openapi.
#[test]
fn schemathesis() {
    let bin = venv("openapi", "openapi/requirements.txt");
    let suite = root().join("tests/clients/openapi");
    let server = Server::start(&[MODEL, EMBEDDER, "--context", "256", "--responses-store", "100"]);
    let document = format!("{}/openapi.json", server.url);
    run(Command::new(bin.join("python")).arg(suite.join("validate.py")).arg(&document));
    // What it writes goes into the clients' folder.
    run(Command::new(bin.join("st"))
        .arg("--config-file")
        .arg(suite.join("schemathesis.toml"))
        .args(["run", &document, "--generation-deterministic"])
        .current_dir(folder("openapi"))
        .env("PYTHONPATH", &suite)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("WICK_MODEL", MODEL)
        .env("WICK_EMBEDDER", EMBEDDER));
}
