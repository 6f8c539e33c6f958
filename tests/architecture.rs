//! The rules of the source tree, checked on its text: who may import whom, what stays out of the pure modules, how long a
//! file may be. A new module or dependency needs a line here, which is the moment to ask whether it belongs there.
use std::path::{Path, PathBuf};
use std::process::Command;

/// For each module, the other modules of the crate that it may use.
const IMPORTS: [(&str, &[&str]); 18] = [
    ("kv", &[]),
    ("sampling", &[]),
    ("scheduler", &["kv"]),
    ("runner", &["kv", "model", "ops", "sampling", "scheduler", "weights"]),
    ("encoder", &["model", "ops", "runner", "weights"]),
    ("engine", &["grammar", "kv", "runner", "sampling", "scheduler"]),
    ("grammar", &["text"]),
    ("weights", &["model"]),
    ("ops", &["weights"]),
    ("nn", &["model", "ops", "weights"]),
    ("model", &["nn", "ops", "weights"]),
    ("text", &["weights"]),
    ("hub", &[]),
    ("telemetry", &["engine"]),
    ("api", &["encoder", "engine", "grammar", "kv", "sampling", "scheduler", "telemetry", "text"]),
    ("server", &["api"]),
    ("config", &["hub", "telemetry"]),
    (
        "cli",
        &[
            "api",
            "config",
            "encoder",
            "engine",
            "hub",
            "kv",
            "model",
            "ops",
            "runner",
            "sampling",
            "scheduler",
            "server",
            "telemetry",
            "text",
            "weights",
        ],
    ),
];

/// For each dependency, the modules (or files) that may know it. A dependency that is not listed may be used anywhere.
const DEPENDENCIES: [(&str, &[&str]); 23] = [
    ("anyhow", &["cli"]),
    ("axum", &["api", "server", "telemetry"]),
    ("candle_core", &["encoder", "model", "nn", "ops", "runner", "weights"]),
    ("candle_nn", &["model", "nn", "ops", "runner"]),
    ("clap", &["cli", "config", "telemetry"]),
    ("hf_hub", &["hub"]),
    ("hyper", &["api", "server", "telemetry"]),
    ("hyper_util", &["api", "server", "telemetry"]),
    ("indicatif", &["hub"]),
    ("llguidance", &["grammar"]),
    ("memmap2", &["weights"]),
    ("minijinja", &["text"]),
    ("minijinja_contrib", &["text"]),
    ("prometheus_client", &["telemetry"]),
    ("reqwest", &["cli/bench", "hub"]),
    ("safetensors", &["weights"]),
    ("schemars", &["api"]),
    ("serde", &["api", "cli", "config", "hub", "model", "text", "weights"]),
    ("serde_json", &["api", "cli", "encoder", "grammar", "hub", "model", "text", "weights"]),
    ("tokenizers", &["text"]),
    ("tokio", &["api", "cli", "encoder", "engine", "hub", "server"]),
    ("wick_kernels", &["cli/loading.rs", "ops", "runner", "weights"]),
    ("zip", &["hub"]),
];

/// What has no place in the modules that must give the same result for the same calls.
const PURE: [&str; 3] = ["kv", "sampling", "scheduler"];
const IMPURE: [&str; 17] = [
    "candle",
    "tokio",
    "tracing",
    "rayon",
    "rand::",
    "std::time",
    "std::thread",
    "std::env",
    "std::fs",
    "std::net",
    "Instant",
    "mpsc",
    "Mutex",
    "RwLock",
    "RefCell",
    "Atomic",
    "static mut",
];

/// Files for tests that are compiled into the library, so that tests of other crates can use them.
const FOR_TESTS: [&str; 2] = ["testing.rs", "runner/testing.rs"];

const LINES_MAX: usize = 600;

/// A source file of the library, without comments and without what only tests compile.
struct Source {
    /// Below `src`.
    path: String,
    code: String,
}

impl Source {
    /// The top-level module.
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap()
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.module() == *place || self.path.starts_with(place))
    }

    /// Modules between the crate's root and this file: how often `super` may be said and stay inside the top-level module.
    fn depth(&self) -> usize {
        let parts = self.path.split('/').count();
        if self.path.ends_with("/mod.rs") { parts - 2 } else { parts - 1 }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below a folder, sorted.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// The sources of a crate that end up in what users run.
fn sources(folder: &str) -> Vec<Source> {
    let folder = root().join(folder);
    let mut found = Vec::new();
    for file in files_below(&folder).into_iter().filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        let path = file.strip_prefix(&folder).unwrap().to_string_lossy().into_owned();
        found.push((path, std::fs::read_to_string(&file).unwrap()));
    }
    let only_tests: Vec<String> = found.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let is_test = |path: &str| {
        only_tests.iter().any(|module| path == format!("{module}.rs") || path.starts_with(&format!("{module}/")))
    };
    let kept = found.into_iter().filter(|(path, _)| !is_test(path));
    kept.map(|(path, text)| Source { code: code_of(&text), path }).collect()
}

/// The paths (without `.rs`) of modules that a file declares for tests only.
fn test_modules(path: &str, text: &str) -> Vec<String> {
    let base = path.strip_suffix("/mod.rs").or_else(|| path.strip_suffix(".rs")).unwrap();
    let base = if matches!(path, "lib.rs" | "main.rs") { String::new() } else { format!("{base}/") };
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, _) in lines.iter().enumerate().filter(|(_, line)| line.trim() == "#[cfg(test)]") {
        let item = lines[at + 1..].iter().find(|line| !line.trim_start().starts_with("#["));
        let name = item.and_then(|line| line.trim().split("mod ").nth(1)?.strip_suffix(';'));
        found.extend(name.map(|name| format!("{base}{name}")));
    }
    found
}

/// The code of a (formatted) file: comments and items under `#[cfg(test)]` are left out.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            skip_item(line.len() - line.trim_start().len(), &mut lines);
        } else if !line.trim_start().starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// Skips an item and its attributes. The formatter puts the brace that closes it at the item's own indentation.
fn skip_item<'a>(indent: usize, lines: &mut impl Iterator<Item = &'a str>) {
    for line in lines {
        let own = line.len() - line.trim_start().len() == indent && !line.trim_start().starts_with("#[");
        if own && line.ends_with(['}', ';']) {
            return;
        }
    }
}

/// Where `word` stands; if it begins as an identifier does, not inside a longer one.
fn uses<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let ident = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| !(word.starts_with(ident) && code[..at].ends_with(ident)))
}

/// The modules that code names as `crate::NAME` or in `crate::{NAME, …}`.
fn imported(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for at in uses(code, "crate::") {
        let rest = &code[at + "crate::".len()..];
        let first = |s: &str| s.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            None => found.push(first(rest)),
            Some(list) => {
                let (mut depth, mut item) = (0, String::new());
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => found.push(first(&std::mem::take(&mut item))),
                        c => item.push(c),
                    }
                }
                found.push(first(&item));
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn wrong_imports(source: &Source) -> Vec<String> {
    let module = source.module();
    let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
        return vec![format!("src/{}: module `{module}` is not in IMPORTS of tests/architecture.rs", source.path)];
    };
    let stranger = |name: &String| name != module && !allowed.contains(&name.as_str());
    let mut wrong: Vec<String> = imported(&source.code)
        .into_iter()
        .filter(stranger)
        .map(|name| format!("src/{}: `{module}` may not use `crate::{name}`", source.path))
        .collect();
    if source.code.contains(&"super::".repeat(source.depth() + 1)) {
        wrong.push(format!("src/{}: `super` leads out of `{module}`; name the module", source.path));
    }
    wrong
}

fn wrong_dependencies(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, places) in DEPENDENCIES {
        if !source.is_in(places) && uses(&source.code, &format!("{name}::")).next().is_some() {
            wrong.push(format!("src/{}: only {} may use {name}", source.path, places.join(", ")));
        }
    }
    wrong
}

fn impurities(source: &Source) -> Vec<String> {
    if !PURE.contains(&source.module()) {
        return Vec::new();
    }
    let found = IMPURE.iter().filter(|word| uses(&source.code, word).next().is_some());
    found.map(|word| format!("src/{}: `{word}` has no place in a pure module", source.path)).collect()
}

/// What may stand only in some places: word, places, why.
fn misplaced(source: &Source) -> Vec<String> {
    const RULES: [(&str, &[&str], &str); 10] = [
        ("is_cpu", &["ops", "weights", "runner", "cli/loading.rs"], "models never ask which device they run on"),
        ("Storage::", &["ops", "weights", "runner"], "models never look into tensors"),
        ("println!", &["cli"], "only commands print to stdout"),
        ("print!", &["cli"], "only commands print to stdout"),
        ("process::exit", &["cli"], "only commands end the process"),
        ("unsafe", &["weights/map.rs"], "unsafe code lives in kernels/"),
        (".unwrap()", &[], "return an error, or say with `expect` why it cannot happen"),
        ("todo!", &[], "unfinished"),
        ("unimplemented!", &[], "unfinished"),
        ("dbg!", &[], "left from debugging"),
    ];
    let mut wrong = Vec::new();
    for (word, places, why) in RULES {
        // `unsafe` also begins the names of lints.
        let code = source.code.replace("unsafe_code", "");
        if !source.is_in(places) && uses(&code, word).next().is_some() {
            wrong.push(format!("src/{}: `{word}`: {why}", source.path));
        }
    }
    wrong
}

/// `expect` is for what cannot happen, and its message says so.
fn doubtful_expects(source: &Source) -> Vec<String> {
    let calls = source.code.match_indices(".expect(").map(|(at, _)| &source.code[at + 8..]);
    // An attribute such as `#[expect(…)]` has no dot before it.
    let messages = calls.map(|rest| rest.trim_start().split('\n').next().unwrap_or_default());
    let wrong = messages.filter(|message| message.starts_with('"') && !message.contains(" a bug"));
    wrong
        .map(|message| format!("src/{}: expect({message}: the message does not end in `… is a bug`", source.path))
        .collect()
}

fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}

/// The library, without its helpers for tests.
fn library() -> Vec<Source> {
    let mut found = sources("src");
    found.retain(|source| !FOR_TESTS.contains(&source.path.as_str()) && source.path != "main.rs");
    assert!(found.len() > 80, "only {} files were found", found.len());
    found
}

/// Files that git knows or would know, without those that were deleted.
fn tracked() -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().expect("git is needed to know which files belong to the repository");
    assert!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    let files: Vec<PathBuf> =
        names.split_terminator('\0').map(|name| root().join(name)).filter(|f| f.is_file()).collect();
    assert!(files.len() > 150, "only {} files were found", files.len());
    files
}

fn short(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(root()).unwrap_or(path).display()
}

#[test]
fn modules_import_only_what_their_place_allows() {
    assert_none(library().iter().filter(|s| s.path != "lib.rs").flat_map(wrong_imports).collect());
}

#[test]
fn dependencies_stay_where_they_belong() {
    assert_none(library().iter().flat_map(wrong_dependencies).collect());
}

#[test]
fn the_pure_modules_are_pure() {
    assert_none(library().iter().flat_map(impurities).collect());
}

#[test]
fn nothing_is_misplaced_or_unfinished() {
    assert_none(library().iter().flat_map(|source| [misplaced(source), doubtful_expects(source)].concat()).collect());
    let kernels = sources("kernels/src");
    assert!(kernels.len() > 10);
    for word in [".unwrap()", "todo!", "unimplemented!", "dbg!", "println!"] {
        let with = kernels.iter().filter(|source| uses(&source.code, word).next().is_some());
        assert_none(with.map(|source| format!("kernels/src/{}: `{word}`", source.path)).collect());
    }
}

#[test]
fn kernels_know_no_tensors() {
    let manifest = std::fs::read_to_string(root().join("kernels/Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dev-dependencies]").next().unwrap();
    assert!(!dependencies.contains("candle"), "wick-kernels takes slices, not tensors");
}

#[test]
fn every_file_can_be_read_in_one_sitting() {
    let is_code =
        |file: &&PathBuf| file.extension().is_some_and(|e| ["rs", "py", "mjs", "js", "ts"].iter().any(|x| e == *x));
    let files = tracked();
    let lines = |file: &PathBuf| std::fs::read_to_string(file).unwrap().lines().count();
    let long = files.iter().filter(is_code).map(|file| (lines(file), file)).filter(|(lines, _)| *lines > LINES_MAX);
    assert_none(
        long.map(|(lines, file)| format!("{}: {lines} lines, the limit is {LINES_MAX}", short(file))).collect(),
    );
}

#[test]
fn no_file_names_a_package_registry() {
    // In two parts, because this file is searched too.
    let hosts = [("pypi", ".org"), ("pythonhosted", ".org"), ("crates", ".io"), ("npmjs", ".org"), ("npmjs", ".com")];
    let hosts = hosts.map(|(name, end)| format!("{name}{end}"));
    let mut found = Vec::new();
    // Lock files are written by their tools, which put the registry's name there.
    let is_lock =
        |file: &&PathBuf| file.extension().is_some_and(|e| e == "lock") || file.ends_with("package-lock.json");
    for file in tracked().iter().filter(|file| !is_lock(file)) {
        let text = String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned();
        let names = hosts.iter().filter(|host| text.contains(host.as_str()));
        found.extend(names.map(|host| format!("{}: {host}", short(file))));
    }
    assert_none(found);
}

#[test]
fn the_rules_find_what_breaks_them() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), code: code_of(text) };
    let tested = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {\n        c.unwrap();\n    }\n}\n// d.unwrap()\n";
    assert_eq!(code_of(tested), "fn a() {}\n");
    let declared = "#[cfg(test)]\n#[expect(dead_code)]\npub(crate) mod writer;\nfn a() {}\n";
    assert_eq!(
        (code_of(declared).as_str(), test_modules("x/y.rs", declared)),
        ("fn a() {}\n", vec!["x/y/writer".to_owned()])
    );
    assert_eq!(test_modules("x/mod.rs", declared), ["x/writer"]);

    assert_eq!(imported("use crate::a::B;\nuse crate::{c, d::{E, f}, g};\nuse my_crate::h;"), ["a", "c", "d", "g"]);
    assert_eq!(wrong_imports(&source("kv/x.rs", "use crate::engine::A;\nuse crate::kv::B;")).len(), 1);
    assert_eq!(wrong_imports(&source("kv/x.rs", "use super::super::engine::A;")).len(), 1);
    assert_eq!(wrong_imports(&source("kv/mod.rs", "use super::engine::A;")).len(), 1);
    assert_eq!(wrong_imports(&source("kv/x.rs", "use super::A;")).len(), 0);
    assert_eq!(wrong_imports(&source("new/x.rs", "")).len(), 1);
    assert_eq!(wrong_dependencies(&source("engine/x.rs", "use axum::A;\nuse hyper_util::B;")).len(), 2);
    assert_eq!(wrong_dependencies(&source("api/x.rs", "use axum::A;")).len(), 0);
    assert_eq!(impurities(&source("sampling/x.rs", "use std::sync::{Arc, Mutex};\nlet t = Instant::now();")).len(), 2);
    assert_eq!(impurities(&source("engine/x.rs", "use std::sync::Mutex;")).len(), 0);
    assert_eq!(misplaced(&source("nn/x.rs", "if device.is_cpu() { todo!() }\na.unwrap();")).len(), 3);
    assert_eq!(
        doubtful_expects(&source("nn/x.rs", "a.expect(\"set\");\nb.expect(\"an empty list is a bug\");")).len(),
        1
    );
}
