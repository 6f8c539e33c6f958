//! Named API keys, kept as hashes. The key's name is the tenant.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::error::ApiError;
use crate::kv::CacheSalt;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every route that is not named below.
    Infer,
    /// Reserved for routes that change the server; none exist yet.
    Admin,
    /// `GET /metrics`.
    Metrics,
}

impl Scope {
    /// The word in the keys file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
        }
    }
}

/// Why a keys file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot read the keys file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the keys file {path} is not valid TOML for keys: {reason}")]
    Syntax { path: PathBuf, reason: String },
    #[error("the keys file {path} holds no [[key]]; without one nobody could use the server")]
    Empty { path: PathBuf },
    #[error(
        "the keys file {path}: key {index} (counted from 1) has an empty name, or one longer than 64 characters or with characters other than letters, digits, `-`, `_`, `.`, `@`"
    )]
    BadName { path: PathBuf, index: usize },
    #[error("the keys file {path}: two keys are named `{name}`; names are tenants and must differ")]
    DuplicateName { path: PathBuf, name: String },
    #[error(
        "the keys file {path}: the keys `{first}` and `{second}` have the same hash; make a new key for one of them"
    )]
    DuplicateHash { path: PathBuf, first: String, second: String },
    #[error(
        "the keys file {path}: sha256 of key `{name}` must be 64 hexadecimal digits (the SHA-256 of the key, not the key itself)"
    )]
    BadHash { path: PathBuf, name: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    #[serde(default)]
    key: Vec<KeyEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    name: String,
    sha256: String,
    /// Without it: `["infer"]`.
    scopes: Option<Vec<Scope>>,
}

#[derive(Debug, Clone)]
struct Key {
    name: Arc<str>,
    sha256: [u8; 32],
    scopes: Vec<Scope>,
}

/// The keys that the server accepts.
#[derive(Debug, Clone)]
pub struct KeyStore {
    keys: Vec<Key>,
}

impl KeyStore {
    /// Reads a keys file (TOML: `[[key]]` tables with `name`, `sha256` and optionally `scopes`). Warns in the log if
    /// others on this machine may read or change it.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let read = |source| KeyFileError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(path).map_err(read)?.permissions().mode();
            if mode & 0o077 != 0 {
                tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "others can read or change the keys file; run: chmod 600");
            }
        }
        Self::parse(&text, path)
    }

    /// The same from text; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, KeyFileError> {
        let path = || path.to_owned();
        let file: KeysFile = toml::from_str(text)
            .map_err(|error| KeyFileError::Syntax { path: path(), reason: error.message().to_owned() })?;
        if file.key.is_empty() {
            return Err(KeyFileError::Empty { path: path() });
        }
        let mut keys: Vec<Key> = Vec::with_capacity(file.key.len());
        for (index, entry) in file.key.into_iter().enumerate() {
            let KeyEntry { name, sha256, scopes } = entry;
            if !is_name(&name) {
                return Err(KeyFileError::BadName { path: path(), index: index + 1 });
            }
            let Some(sha256) = from_hex(&sha256) else { return Err(KeyFileError::BadHash { path: path(), name }) };
            if keys.iter().any(|key| *key.name == *name) {
                return Err(KeyFileError::DuplicateName { path: path(), name });
            }
            if let Some(first) = keys.iter().find(|key| key.sha256 == sha256) {
                let first = first.name.to_string();
                return Err(KeyFileError::DuplicateHash { path: path(), first, second: name });
            }
            keys.push(Key { name: name.into(), sha256, scopes: scopes.unwrap_or_else(|| vec![Scope::Infer]) });
        }
        Ok(Self { keys })
    }

    /// Who sent these headers (`Authorization: Bearer` or `x-api-key`), and whether they may do `scope`.
    pub(crate) fn authorise(&self, headers: &HeaderMap, scope: Scope) -> Result<Tenant, ApiError> {
        let presented = presented_key(headers).ok_or(ApiError::KeyMissing)?;
        let key = self.find(presented).ok_or(ApiError::KeyInvalid)?;
        if !key.scopes.contains(&scope) {
            return Err(ApiError::ScopeMissing { scope: scope.name() });
        }
        Ok(Tenant::named(Arc::clone(&key.name)))
    }

    /// Compares with every key, in time that does not depend on which one matches, or how much of it.
    fn find(&self, presented: &[u8]) -> Option<&Key> {
        let digest = Sha256::digest(presented);
        let mut found = u32::MAX;
        for (index, key) in (0_u32..).zip(&self.keys) {
            let equal: Choice = digest.as_slice().ct_eq(&key.sha256);
            found.conditional_assign(&index, equal);
        }
        self.keys.get(usize::try_from(found).ok()?)
    }
}

fn presented_key(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        return scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii());
    }
    headers.get("x-api-key").map(|value| value.as_bytes().trim_ascii())
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte))
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0_u8; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A new key: shown once, stored as its hash.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// To hand to the client; not stored anywhere.
    pub plaintext: String,
    /// To append to the keys file.
    pub toml: String,
}

/// Makes a key of 244 random bits from the operating system. `None` if `name` cannot be a key's name (see
/// [`KeyFileError::BadName`]).
#[must_use]
pub fn generate_key(name: &str, scopes: &[Scope]) -> Option<NewKey> {
    if !is_name(name) {
        return None;
    }
    let plaintext = format!("wick-{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let scopes: Vec<String> = scopes.iter().map(|scope| format!("\"{}\"", scope.name())).collect();
    let hash = to_hex(&Sha256::digest(plaintext.as_bytes()));
    let toml = format!("[[key]]\nname = \"{name}\"\nsha256 = \"{hash}\"\nscopes = [{}]\n", scopes.join(", "));
    Some(NewKey { plaintext, toml })
}

/// On whose behalf a request runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tenant {
    name: Option<Arc<str>>,
}

impl Tenant {
    /// Everybody, on a server without keys.
    pub(crate) const ANONYMOUS: Self = Self { name: None };

    fn named(name: Arc<str>) -> Self {
        Self { name: Some(name) }
    }

    /// For metrics and logs.
    pub(crate) fn label(&self) -> &str {
        self.name.as_deref().unwrap_or("anonymous")
    }

    /// For the scheduler's fairness.
    pub(crate) fn group(&self) -> u64 {
        self.name.as_ref().map_or(0, |name| hash64(&["tenant", name]))
    }

    /// Prefix blocks are shared only within a tenant, and within equal `cache_salt`s of a tenant.
    pub(crate) fn cache_salt(&self, cache_salt: Option<&str>) -> CacheSalt {
        match (&self.name, cache_salt) {
            (None, None) => CacheSalt::default(),
            (name, salt) => {
                let tenant = if name.is_some() { "named" } else { "anonymous" };
                let salted = if salt.is_some() { "salted" } else { "plain" };
                CacheSalt(hash64(&[tenant, name.as_deref().unwrap_or(""), salted, salt.unwrap_or("")]))
            }
        }
    }
}

/// The first 8 bytes of the SHA-256 of the parts, each with its length before it.
fn hash64(parts: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn parse(text: &str) -> Result<KeyStore, KeyFileError> {
        KeyStore::parse(text, Path::new("keys.toml"))
    }

    fn bearer(key: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}")).unwrap())])
    }

    #[test]
    fn a_generated_key_opens_what_its_scopes_say() {
        let key = generate_key("team-a", &[Scope::Infer]).unwrap();
        let store = parse(&key.toml).unwrap();
        let tenant = store.authorise(&bearer(&key.plaintext), Scope::Infer).unwrap();
        assert_eq!(tenant.label(), "team-a");
        let metrics = store.authorise(&bearer(&key.plaintext), Scope::Metrics);
        assert_eq!(metrics, Err(ApiError::ScopeMissing { scope: "metrics" }));
        assert_eq!(store.authorise(&bearer("wick-other"), Scope::Infer), Err(ApiError::KeyInvalid));
        assert_eq!(store.authorise(&HeaderMap::new(), Scope::Infer), Err(ApiError::KeyMissing));
        let header =
            HeaderMap::from_iter([("x-api-key".parse().unwrap(), HeaderValue::from_str(&key.plaintext).unwrap())]);
        assert!(store.authorise(&header, Scope::Infer).is_ok());
        assert!(!key.toml.contains(&key.plaintext));
    }

    #[test]
    fn the_right_key_of_many_is_found() {
        let keys: Vec<NewKey> = (0..5).map(|i| generate_key(&format!("k{i}"), &[Scope::Infer]).unwrap()).collect();
        let store = parse(&keys.iter().map(|key| key.toml.clone()).collect::<String>()).unwrap();
        for (index, key) in keys.iter().enumerate() {
            let tenant = store.authorise(&bearer(&key.plaintext), Scope::Infer).unwrap();
            assert_eq!(tenant.label(), format!("k{index}"));
        }
    }

    #[test]
    fn bad_files_say_what_is_wrong() {
        let hash = "a".repeat(64);
        let entry = |name: &str, hash: &str| format!("[[key]]\nname = \"{name}\"\nsha256 = \"{hash}\"\n");
        let other = "b".repeat(64);
        assert!(matches!(parse(""), Err(KeyFileError::Empty { .. })));
        assert!(matches!(parse(&entry("a", "zz")), Err(KeyFileError::BadHash { .. })));
        assert!(matches!(parse(&entry("", &hash)), Err(KeyFileError::BadName { index: 1, .. })));
        assert!(matches!(
            parse(&[entry("a", &hash), entry("a", &other)].concat()),
            Err(KeyFileError::DuplicateName { .. })
        ));
        assert!(matches!(
            parse(&[entry("a", &hash), entry("b", &hash)].concat()),
            Err(KeyFileError::DuplicateHash { .. })
        ));
        assert!(matches!(parse(&(entry("a", &hash) + "key = \"x\"\n")), Err(KeyFileError::Syntax { .. })));
        assert!(matches!(parse(&(entry("a", &hash) + "scopes = [\"root\"]\n")), Err(KeyFileError::Syntax { .. })));
    }

    #[test]
    fn salts_differ_between_tenants_and_between_their_salts() {
        let a = Tenant::named("a".into());
        let b = Tenant::named("b".into());
        let salts = [
            Tenant::ANONYMOUS.cache_salt(None),
            Tenant::ANONYMOUS.cache_salt(Some("")),
            Tenant::ANONYMOUS.cache_salt(Some("b")),
            a.cache_salt(None),
            a.cache_salt(Some("b")),
            b.cache_salt(None),
        ];
        let distinct: std::collections::HashSet<_> = salts.iter().collect();
        assert_eq!(distinct.len(), salts.len());
        assert_eq!(a.cache_salt(None), Tenant::named("a".into()).cache_salt(None));
    }
}
