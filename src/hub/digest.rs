//! What a file must be: its size, and a digest that whoever lists it vouches for.
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::Sha256;
use sha2::digest::Digest as _;

use super::HubError;

/// A digest, in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Digest {
    /// Of the content: the catalogue's, and the model hub's for large files.
    Sha256(String),
    /// Git's name of the content (SHA-1 of `blob LENGTH\0` and the content): all that the hub says of small files.
    GitBlob(String),
}

impl Digest {
    /// Its name, for messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitBlob(_) => "git blob SHA-1",
        }
    }

    /// The digest that a string of 64 or 40 hex digits must be.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let hex = hex.to_ascii_lowercase();
        let sound = hex.bytes().all(|b| b.is_ascii_hexdigit());
        match hex.len() {
            64 if sound => Some(Self::Sha256(hex)),
            40 if sound => Some(Self::GitBlob(hex)),
            _ => None,
        }
    }

    /// The digest of the same kind of a file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_file(&self, path: &Path) -> Result<Self, HubError> {
        let io = |source| HubError::Io { doing: "reading", path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Ok(match self {
            Self::Sha256(_) => Self::Sha256(hex(&hash(Sha256::new(), &mut file).map_err(io)?)),
            Self::GitBlob(_) => {
                let start = Sha1::new_with_prefix(format!("blob {length}\0"));
                Self::GitBlob(hex(&hash(start, &mut file).map_err(io)?))
            }
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Sha256(hex) | Self::GitBlob(hex)) = self;
        f.write_str(hex)
    }
}

/// A file as whoever lists it describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSpec {
    pub name: String,
    pub bytes: u64,
    pub digest: Digest,
}

fn hash<D: sha2::digest::Digest>(mut hasher: D, input: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = input.read(&mut buffer)?;
        if n == 0 {
            return Ok(hasher.finalize().to_vec());
        }
        hasher.update(&buffer[..n]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        use std::fmt::Write as _;
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_agree_with_other_programs() {
        let t = tempfile::tempdir().unwrap();
        let path = t.path().join("f");
        std::fs::write(&path, b"hello\n").unwrap();
        // sha256sum and git hash-object.
        for hex in [
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
            "ce013625030ba8dba906f756967f9e9ca394464a",
        ] {
            let digest = Digest::from_hex(hex).unwrap();
            assert_eq!(digest.of_file(&path).unwrap(), digest);
        }
        assert!(Digest::from_hex("abc").is_none() && Digest::from_hex(&"x".repeat(64)).is_none());
    }
}
