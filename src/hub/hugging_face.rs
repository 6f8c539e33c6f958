//! Files from the model hub, through the `hf-hub` crate: HF_ENDPOINT, HF_TOKEN, HF_HOME and the platform's certificate
//! store are its business. HF_HUB_OFFLINE is read by `hub::resolve`. Downloads are resumed by byte range, which
//! `hf-hub`'s own download does not do, and verified against the hub's digest of the file where it has one.
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use hf_hub::{HFClient, HFError};

use super::SourceError;
use super::progress::Progress;
use super::store::{ModelDir, Partial};

/// No answer to the first request within this time: the next source is tried.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// No byte for this long: the download failed (a later pull resumes it).
const STALL: Duration = Duration::from_secs(60);

/// A repository at a revision.
pub struct Repo {
    client: HFClient,
    owner: String,
    name: String,
    revision: Option<String>,
}

/// A file the hub has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    pub path: String,
    pub bytes: u64,
    /// Known for large files only.
    pub sha256: Option<String>,
}

impl Repo {
    /// `repo`: `owner/name`.
    ///
    /// # Errors
    /// A malformed name or endpoint.
    pub fn new(repo: &str, revision: Option<&str>) -> Result<Self, SourceError> {
        let (owner, name) = repo
            .split_once('/')
            .filter(|(o, n)| !o.is_empty() && !n.is_empty() && !n.contains('/'))
            .ok_or_else(|| SourceError::broken(format!("`{repo}` is not of the form ORG/REPO")))?;
        let client = HFClient::builder().retry_max_attempts(1).build().map_err(|e| failed(&e))?;
        Ok(Self { client, owner: owner.into(), name: name.into(), revision: revision.map(str::to_owned) })
    }

    /// All files of the repository.
    ///
    /// # Errors
    /// The hub cannot be reached, or has no such repository or revision.
    pub async fn list(&self) -> Result<Vec<RemoteFile>, SourceError> {
        let list = async {
            let repo = self.client.model(&self.owner, &self.name);
            let tree = repo
                .list_tree()
                .maybe_revision(self.revision.clone())
                .recursive(true)
                .send()
                .map_err(|e| failed(&e))?;
            tokio::pin!(tree);
            let mut files = Vec::new();
            while let Some(entry) = tree.next().await {
                if let hf_hub::repository::RepoTreeEntry::File { size, path, lfs, .. } =
                    entry.map_err(|e| failed(&e))?
                {
                    files.push(RemoteFile { path, bytes: size, sha256: lfs.and_then(|l| l.sha256) });
                }
            }
            Ok(files)
        };
        timeout(FIRST_ANSWER, list).await
    }

    /// A copy in the hub's own cache (filled by other tools), at this revision. Makes no connection.
    pub async fn cached(&self, file: &str) -> Option<PathBuf> {
        let repo = self.client.model(&self.owner, &self.name);
        repo.download_file()
            .filename(file)
            .maybe_revision(self.revision.clone())
            .local_files_only(true)
            .send()
            .await
            .ok()
    }

    /// Fetches `file` into the model's folder, going on where an earlier pull stopped.
    ///
    /// # Errors
    /// The hub cannot be reached or the connection broke; disk faults.
    pub async fn fetch(&self, dir: &ModelDir, file: &str, local: &str, bytes: u64) -> Result<Partial, SourceError> {
        let repo = self.client.model(&self.owner, &self.name);
        let mut partial = dir.partial(local)?;
        if bytes > 0 && partial.len() > bytes {
            partial.truncate(0)?;
        }
        if bytes > 0 && partial.len() == bytes {
            return Ok(partial);
        }
        let range = (bytes > 0 && !partial.is_empty()).then(|| partial.len()..bytes);
        let request = async {
            let sent = repo
                .download_file_stream()
                .filename(file)
                .maybe_revision(self.revision.clone())
                .maybe_range(range.clone());
            sent.send().await.map_err(|e| failed(&e))
        };
        let (length, mut stream) = timeout(FIRST_ANSWER, request).await?;
        // A server that ignores the range answers with the whole file.
        if let Some(r) = &range
            && length.is_some_and(|l| l != r.end - r.start)
        {
            partial.truncate(0)?;
        }
        let progress = Progress::new(local, bytes);
        progress.resume_at(partial.len());
        loop {
            let next = tokio::time::timeout(STALL, stream.next()).await;
            match next {
                Ok(Some(Ok(chunk))) => {
                    partial.append(&chunk).inspect_err(|_| progress.abandon())?;
                    progress.set(partial.len());
                }
                Ok(None) => break,
                Ok(Some(Err(e))) => {
                    progress.abandon();
                    return Err(failed(&e));
                }
                Err(_) => {
                    progress.abandon();
                    return Err(SourceError::unreachable(format!("no data for {} s", STALL.as_secs())));
                }
            }
        }
        progress.finish(partial.len());
        if bytes > 0 && partial.len() != bytes {
            return Err(SourceError::unreachable(format!("the download ended at {} of {bytes} bytes", partial.len())));
        }
        Ok(partial)
    }
}

async fn timeout<T>(limit: Duration, f: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
    tokio::time::timeout(limit, f).await.unwrap_or_else(|_| {
        Err(SourceError::unreachable(format!("the hub did not answer within {} s", limit.as_secs())))
    })
}

/// One line: for a connection that failed, its innermost cause ("failed to lookup address information") says most.
fn failed(error: &HFError) -> SourceError {
    let mut root: &dyn std::error::Error = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    let text = match error {
        HFError::Request { .. } => format!("cannot reach the hub: {root}"),
        other => other.to_string(),
    };
    SourceError::unreachable(text.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_are_checked() {
        for bad in ["gpt2", "a/b/c", "/b", "a/", ""] {
            assert!(Repo::new(bad, None).is_err(), "{bad}");
        }
        assert!(Repo::new("org/repo", Some("main")).is_ok());
    }
}
