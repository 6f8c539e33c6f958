//! Runs the built binary as a user would.
use std::ffi::OsStr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// No command of these tests takes this long, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(180);

/// The binary with nothing from this process's environment that would change what it does, except where the cache lies.
pub fn command(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wick"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if (name.starts_with("WICK_") && name != "WICK_CACHE") || name == "HF_HUB_OFFLINE" {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end. Only errors are logged.
pub async fn run(mut command: Command) -> Ran {
    command.args(["--log", "error"]);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("the command hangs").unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub async fn wick(args: &[&str]) -> Ran {
    run(command(args)).await
}

impl Ran {
    /// Ended well; what it printed.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Exit code 1, one line on stderr that contains all `parts`, no claim on stdout that something is served.
    #[track_caller]
    pub fn failed(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "not one line: {}", self.stderr);
        self.says(parts);
    }

    /// Exit code 2: the arguments are wrong. The first line says how; hints may follow.
    #[track_caller]
    pub fn refused_arguments(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(2), "{self:?}");
        self.says(parts);
    }

    #[track_caller]
    fn says(&self, parts: &[&str]) {
        let line = self.stderr.lines().next().unwrap_or_default();
        assert!(line.starts_with("error: "), "{line}");
        for part in parts {
            assert!(line.contains(part), "`{part}` is not in: {line}");
        }
        assert!(!self.stdout.contains("wick serves"), "{self:?}");
    }
}

/// A running `wick serve`.
pub struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// `http://127.0.0.1:PORT`
    pub url: String,
    pub client: reqwest::Client,
}

impl Server {
    /// Starts a server on any free port and waits until it serves.
    pub async fn start(args: &[&str]) -> Self {
        let fixed = ["serve", "--port", "0", "--kv-memory", "256MiB", "--log", "warn"];
        Self::serving(spawn(fixed.iter().chain(args))).await.unwrap_or_else(|stderr| panic!("no server: {stderr}"))
    }

    /// Waits until the child says where it serves; what it wrote to stderr if it ends without.
    pub async fn serving(mut child: Child) -> Result<Self, String> {
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let announced = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.starts_with("wick serves ") {
                    return Some(line);
                }
            }
            None
        };
        let Some(line) = tokio::time::timeout(PATIENCE, announced).await.expect("the server does not start") else {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).await.unwrap();
            return Err(stderr);
        };
        let url = line.split(" at ").nth(1).and_then(|url| url.strip_suffix("/v1")).unwrap_or_else(|| panic!("{line}"));
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Ok(Self { url: url.to_owned(), child, lines, client })
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("the server has ended")
    }

    pub fn port(&self) -> &str {
        self.url.rsplit(':').next().unwrap()
    }

    pub async fn status(&self, path: &str) -> u16 {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap().status().as_u16()
    }

    /// Sends a signal, by name.
    pub async fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().await.unwrap().success());
    }

    /// Waits for the end: the exit status, what came to stdout after the start, and stderr.
    pub async fn ended(mut self) -> (ExitStatus, String, String) {
        let rest = async {
            let mut stdout = String::new();
            while let Some(line) = self.lines.next_line().await.unwrap() {
                stdout.push_str(&line);
            }
            let mut stderr = String::new();
            self.child.stderr.take().unwrap().read_to_string(&mut stderr).await.unwrap();
            (self.child.wait().await.unwrap(), stdout, stderr)
        };
        tokio::time::timeout(PATIENCE, rest).await.expect("the server does not end")
    }
}

pub fn spawn(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Child {
    command(args).spawn().unwrap()
}
