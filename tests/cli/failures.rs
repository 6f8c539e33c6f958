//! What goes wrong at the start: one clear line each, a non-zero exit code, and no server.
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use crate::models::pulled;
use crate::process::{Ran, Server, command, run, spawn, wick};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn smollm2() -> String {
    text(&pulled("smollm2-135m")).to_owned()
}

fn file(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// `wick serve` on any free port.
async fn serve(args: &[&str]) -> Ran {
    wick(&[&["serve", "--port", "0"], args].concat()).await
}

#[tokio::test]
async fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // Known before anything is fetched or opened: the model's name need not even be right.
    let ran = wick(&["serve", "no-such-model", "--port", &port]).await;
    ran.failed(&[&format!("cannot listen on 127.0.0.1:{port}"), "another --port"]);
}

#[tokio::test]
async fn a_port_that_another_wick_serves_on() {
    let server = Server::start(&[&smollm2()]).await;
    wick(&["serve", &smollm2(), "--port", server.port()]).await.failed(&["cannot listen on", server.port()]);
    assert_eq!(server.status("/readyz").await, 200, "the first server is not harmed");
}

#[tokio::test]
async fn of_two_servers_started_at_once_on_one_port_one_serves() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let model = smollm2();
    let start =
        || Server::serving(spawn(["serve", &model, "--port", &port, "--kv-memory", "256MiB", "--log", "error"]));
    let (one, other) = tokio::join!(start(), start());
    let (server, stderr) = match (one, other) {
        (Ok(server), Err(stderr)) | (Err(stderr), Ok(server)) => (server, stderr),
        (Ok(_), Ok(_)) => panic!("both serve"),
        (Err(one), Err(other)) => panic!("neither serves: {one}{other}"),
    };
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: cannot listen on "), "{stderr}");
    assert_eq!(server.status("/readyz").await, 200);
}

#[tokio::test]
async fn models_that_are_none() {
    let folder = folder();
    let missing = folder.path().join("missing.gguf");
    serve(&[text(&missing)]).await.failed(&[text(&missing), "no such file or folder"]);
    serve(&[text(folder.path())]).await.failed(&[text(folder.path()), "neither config.json nor a .gguf file"]);
    serve(&[text(&file(&folder, "empty.gguf", ""))]).await.failed(&["empty.gguf", "the file is empty"]);
    serve(&[text(&file(&folder, "note.txt", "dear diary"))]).await.failed(&["note.txt"]);
    serve(&["/dev/null"]).await.failed(&["/dev/null", "not a regular file"]);
    serve(&["no-such-model"]).await.failed(&["unknown model `no-such-model`", "smollm2-135m", "hf:ORG/REPO"]);
    wick(&["inspect", text(&missing)]).await.failed(&["no such file or folder"]);
    wick(&["chat", text(&missing), "--prompt", "x"]).await.failed(&["no such file or folder"]);
}

#[tokio::test]
async fn a_truncated_model_file() {
    let whole = std::fs::read(pulled("smollm2-135m")).unwrap();
    let folder = folder();
    // In the magic number, the counts, the metadata, the vocabulary, the list of tensors, their data, and its last byte.
    let header = 1_800_000;
    assert!(whole.len() > 2 * header);
    for length in [3, 11, 23, 200, 100_000, header, whole.len() / 2, whole.len() - 1] {
        let cut = file(&folder, "cut.gguf", &whole[..length]);
        for command in ["serve", "inspect"] {
            let ran = wick(&[command, text(&cut)]).await;
            assert_eq!(ran.code, Some(1), "{command} of the first {length} bytes: {ran:?}");
            ran.failed(&["cut.gguf"]);
        }
    }
}

#[tokio::test]
async fn a_damaged_checkpoint_folder() {
    let folder = folder();
    let config = file(&folder, "config.json", "{");
    serve(&[text(folder.path())]).await.failed(&[text(&config), "not valid JSON"]);
    file(&folder, "config.json", r#"{"model_type": "rwkv"}"#);
    serve(&[text(folder.path())]).await.failed(&["unknown architecture `rwkv`", "llama"]);
}

/// A catalogue with one entry, from a hub that is only asked for if the cache does not have the file.
fn catalogue(folder: &TempDir, sha256: &str) -> PathBuf {
    let entry = format!(
        "[mine]\ndescription = \"mine\"\nkind = \"decoder\"\ncontext = 64\nlicence = \"MIT\"\nfile = \"mine.gguf\"\nbytes = 4\n\
         sha256 = \"{sha256}\"\n[[mine.sources]]\ntype = \"hub\"\nrepo = \"me/mine\"\nfile = \"mine.gguf\"\n"
    );
    file(folder, "catalogue.toml", entry)
}

#[tokio::test]
async fn a_wrong_digest() {
    let folder = folder();
    let wrong = "0".repeat(64);
    let catalogue = catalogue(&folder, &wrong);
    let cache = folder.path().join("cache");
    let model = cache.join("models/mine/mine.gguf");
    std::fs::create_dir_all(model.parent().unwrap()).unwrap();
    std::fs::write(&model, "GGUF").unwrap();
    for command in ["serve", "pull"] {
        let ran = wick(&[command, "mine", "--catalogue", text(&catalogue), "--cache-dir", text(&cache)]).await;
        ran.failed(&[text(&model), "the SHA-256 is", &wrong, "delete the file"]);
    }
    assert_eq!(std::fs::read(&model).unwrap(), b"GGUF", "the user's file was touched");
}

#[tokio::test]
async fn a_bad_catalogue() {
    let folder = folder();
    let bad = catalogue(&folder, "not a digest");
    wick(&["models", "--catalogue", text(&bad)]).await.failed(&["catalogue.toml", "`mine`", "sha256"]);
    let missing = folder.path().join("none.toml");
    wick(&["models", "--catalogue", text(&missing)]).await.failed(&["reading the catalogue", "none.toml"]);
}

#[tokio::test]
async fn an_unwritable_cache() {
    // A file where the folder should be: not even an administrator can write there.
    let folder = folder();
    let cache = file(&folder, "cache", "");
    let ran = wick(&["pull", "smollm2-135m", "--cache-dir", text(&cache)]).await;
    ran.failed(&["creating the model's cache folder", text(&cache)]);
}

#[tokio::test]
async fn arguments_out_of_range() {
    serve(&["--threads", "0"]).await.refused_arguments(&["--threads"]);
    serve(&["--kv-memory", "many"]).await.refused_arguments(&["--kv-memory", "many"]);
    serve(&["--block-size", "0"]).await.refused_arguments(&["--block-size"]);
    serve(&["--no-such-option"]).await.refused_arguments(&["--no-such-option"]);
    wick(&["chat", "--temperature", "3", "--prompt", "x"]).await.failed(&["--temperature must be between 0 and 2"]);
    let model = smollm2();
    // Known before anything is fetched: the cache and the sources are out of reach.
    let early =
        async |args: &[&str]| serve(&[&["smollm2-135m", "--offline", "--cache-dir", "/no/such"], args].concat()).await;
    early(&["--isa", "z80"]).await.failed(&["z80", "scalar"]);
    early(&["--device", "gpu"]).await.failed(&["gpu", "cuda:N"]);
    early(&["--context", "8193"]).await.failed(&["--context 8193 is more than the 8192 tokens", "lower it"]);
    early(&[]).await.failed(&["--offline allows no download"]);
    serve(&[&model, "--isa", "z80"]).await.failed(&["z80", "scalar"]);
    serve(&[&model, "--device", "gpu"]).await.failed(&["gpu", "cuda:N"]);
    if cfg!(not(feature = "cuda")) {
        serve(&[&model, "--device", "cuda"]).await.failed(&["--features cuda"]);
    }
    serve(&[&model, "--kv-memory", "1MiB"]).await.failed(&["--kv-memory 1.0 MiB is less than", "lower --context"]);
    serve(&[&model, "--kv-memory", "1000TiB"]).await.failed(&["--kv-memory 1000.0 TiB does not fit", "lower it"]);
    serve(&[&model, "--kv-dtype", "int8", "--block-size", "2"]).await.failed(&["--kv-dtype int8", "a multiple of 4"]);
    serve(&[&model, "--kv-dtype", "int16", "--block-size", "8"])
        .await
        .failed(&["--kv-dtype int16", "a multiple of 16"]);
    serve(&[&model, "--kv-dtype", "bf16"]).await.failed(&["--kv-dtype bf16 is for GPUs only", "choose f16, or int16"]);
    serve(&[&model, "--context", "8193"]).await.failed(&["--context 8193 is more than the 8192 tokens", "lower it"]);
    serve(&[&model, &model]).await.failed(&["two models would both be named"]);
    serve(&[&model, &model, "--alias", "x"]).await.failed(&["--alias names one model"]);
    serve(&[&model, "--also", "@cf/a/b=nobody"]).await.failed(&["no model is served as `nobody`", "NAME=MODEL"]);
    serve(&[&model, "--also", "@cf/a/b,@cf/a/b"]).await.failed(&["`@cf/a/b`", "is a name already"]);
    serve(&[&model, "--chat-template", "/no/such.jinja"]).await.failed(&["/no/such.jinja"]);
    wick(&["models", "--log", "wick=loud"]).await.refused_arguments(&["--log"]);
}

#[tokio::test]
async fn an_open_door() {
    for host in ["0.0.0.0", "::"] {
        serve(&["--host", host]).await.failed(&["reachable from other machines", "--keys"]);
    }
}

#[tokio::test]
async fn bad_keys_files() {
    let folder = folder();
    let keys = async |content: &str| {
        let path = file(&folder, "keys.toml", content);
        serve(&["--keys", text(&path)]).await
    };
    keys("").await.failed(&["keys.toml", "holds no [[key]]"]);
    keys("[[key]]\nname = \"a\"\nsha256 = \"secret\"").await.failed(&["keys.toml", "key `a`", "64 hexadecimal digits"]);
    keys("[[key]]\nname = ").await.failed(&["keys.toml", "not valid TOML"]);
    serve(&["--keys", "/no/such/keys.toml"]).await.failed(&["/no/such/keys.toml", "No such file"]);
    wick(&["key", "a b"]).await.failed(&["`a b` cannot be a key's name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_makes_no_connection() {
    let folder = folder();
    let catalogue = catalogue(&folder, &"0".repeat(64));
    let hub = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", hub.local_addr().unwrap());
    let visitors = Arc::new(AtomicUsize::new(0));
    let counter = visitors.clone();
    tokio::spawn(async move {
        while hub.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let pull = async |names: &[&str], offline: bool| {
        let mut command = command([&["pull"], names, &["--catalogue", text(&catalogue)]].concat());
        command.arg("--cache-dir").arg(folder.path().join("cache"));
        command.env("HF_ENDPOINT", &endpoint).env("HF_HOME", folder.path()).env("PIP_INDEX_URL", &endpoint);
        if offline {
            command.arg("--offline");
        }
        run(command).await
    };
    for name in ["mine", "smollm2-135m", "hf:me/mine"] {
        pull(&[name], true).await.failed(&[name, "--offline allows no download", "wick pull"]);
    }
    assert_eq!(visitors.load(Ordering::SeqCst), 0);
    assert!(!folder.path().join("cache").exists(), "there is nothing to put there");

    // The same without --offline does knock: the count above means something.
    let ran = pull(&["mine"], false).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    ran.failed(&["no source of `mine` worked: hub me/mine: ", "127.0.0.1"]);
    assert!(visitors.load(Ordering::SeqCst) > 0);
}
