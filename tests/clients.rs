//! The official SDKs against a real server: installs them (pip, npm) into `target/clients`, starts `wick serve` with the
//! default model and an embedding model, and runs the suites of tests/clients/.
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const MODEL: &str = "smollm2-135m";
/// Calls tools.
const TOOL_MODEL: &str = "qwen2.5-coder-1.5b";
/// The suites for it.
const TOOL_SUITES: [&str; 2] = ["test_tools.py", "test_messages.py"];
const EMBEDDER: &str = "all-minilm-l6-v2";

/// A `wick serve` on a free port; ended when dropped.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(models: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_wick"))
            .args(["serve"])
            .args(models)
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
        Self { process, url }
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

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?} ended with {status}");
}

#[test]
fn official_python_sdk() {
    let venv = folder("python");
    let suite = root().join("tests/clients/python");
    if !venv.join("bin/python").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    }
    run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "-r"]).arg(suite.join("requirements.txt")));
    let pytest = |models: &[&str], arguments: &[&str]| {
        let server = Server::start(models);
        run(Command::new(venv.join("bin/python"))
            .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
            .args(arguments)
            .current_dir(&suite)
            .env("WICK_URL", &server.url)
            .env("WICK_MODEL", models[0])
            .env("WICK_EMBEDDER", EMBEDDER)
            .env("PYTHONDONTWRITEBYTECODE", "1"));
    };
    let [tools, messages] = TOOL_SUITES;
    pytest(&[MODEL, EMBEDDER], &["--ignore", tools, "--ignore", messages, "."]);
    pytest(&[TOOL_MODEL], &TOOL_SUITES);
}

#[test]
fn official_node_sdk() {
    let work = folder("node");
    let suite = root().join("tests/clients/node");
    for file in ["package.json", "package-lock.json", "test.mjs"] {
        std::fs::copy(suite.join(file), work.join(file)).expect("copying the suite");
    }
    run(Command::new("npm").args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(&work));
    let server = Server::start(&[MODEL, EMBEDDER]);
    run(Command::new("node")
        .args(["--test", "test.mjs"])
        .current_dir(&work)
        .env("WICK_URL", &server.url)
        .env("WICK_MODEL", MODEL));
}

/// Schemathesis, which makes requests of what `/openapi.json` says, right and wrong ones: no answer may be a 5xx, or one that
/// the document does not have. What it does is in tests/clients/openapi.
#[test]
fn schemathesis() {
    let venv = folder("openapi");
    let suite = root().join("tests/clients/openapi");
    if !venv.join("bin/python").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    }
    run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "-r"]).arg(suite.join("requirements.txt")));
    let server = Server::start(&[MODEL, EMBEDDER, "--context", "256"]);
    let document = format!("{}/openapi.json", server.url);
    run(Command::new(venv.join("bin/python")).arg(suite.join("validate.py")).arg(&document));
    // What it writes goes into the clients' folder.
    run(Command::new(venv.join("bin/st"))
        .arg("--config-file")
        .arg(suite.join("schemathesis.toml"))
        .args(["run", &document, "--generation-deterministic"])
        .current_dir(&venv)
        .env("PYTHONPATH", &suite)
        .env("PYTHONDONTWRITEBYTECODE", "1"));
}
