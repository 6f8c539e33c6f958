//! Files from the model hub. The `hf-hub` crate knows the environment (HF_ENDPOINT, HF_HOME, HF_HUB_CACHE) and finds files
//! in the cache that other tools fill. What goes over the network is asked for here, because hf-hub 1.0 can neither say the
//! SHA-256 that the hub gives for a file (it looks for another field) nor tell whether an answer is the range asked for:
//! revisions are pinned to a commit, files are listed with their digests, and downloads go on where they stopped. The
//! platform's certificate store and the proxy variables are reqwest's business; HF_HUB_OFFLINE is read by `hub::resolve`.
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use hf_hub::HFClient;
use reqwest::header::{CONTENT_RANGE, LINK, RANGE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use super::SourceError;
use super::digest::{Digest, FileSpec};
use super::progress::Progress;
use super::store::{ModelDir, Partial};

/// No answer to a request within this time: the next source is tried.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// No byte for this long: the download failed (a later pull resumes it).
const STALL: Duration = Duration::from_secs(60);
/// Longest list of files read, in bytes and in pages: far more than any model has.
const LIST_BYTES_MAX: usize = 32 << 20;
const LIST_PAGES_MAX: usize = 100;
/// What a repository's name stands for when no revision is named.
const MAIN: &str = "main";

/// A repository at a revision.
pub struct Repo {
    hub: HFClient,
    http: reqwest::Client,
    endpoint: Url,
    token: Option<String>,
    owner: String,
    name: String,
    revision: String,
}

impl Repo {
    /// `repo`: `owner/name`.
    ///
    /// # Errors
    /// A malformed name or endpoint.
    pub fn new(repo: &str, revision: Option<&str>) -> Result<Self, SourceError> {
        let (owner, name) = repo
            .split_once('/')
            .filter(|(o, n)| {
                ![*o, *n].iter().any(|p| p.is_empty() || *p == "." || *p == ".." || p.contains(['/', '\\']))
            })
            .ok_or_else(|| SourceError::because(format!("`{repo}` is not of the form ORG/REPO")))?;
        let hub = HFClient::builder().build().map_err(|e| SourceError::because(e.to_string()))?;
        let endpoint =
            Url::parse(hub.endpoint()).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(
                || SourceError::because(format!("HF_ENDPOINT is `{}`, which is no web address", hub.endpoint())),
            )?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("wick/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(FIRST_ANSWER)
            .build()
            .map_err(|e| SourceError::because(innermost(&e)))?;
        let revision = revision.unwrap_or(MAIN).to_owned();
        Ok(Self { hub, http, endpoint, token: token(), owner: owner.into(), name: name.into(), revision })
    }

    /// Turns the revision into the commit it stands for now, so that what is listed is what is fetched.
    ///
    /// # Errors
    /// The hub cannot be reached, or has no such repository or revision.
    pub async fn pin(&mut self) -> Result<(), SourceError> {
        #[derive(Deserialize)]
        struct Revision {
            sha: String,
        }
        if is_commit(&self.revision) {
            return Ok(());
        }
        let url = self.url(&["api", "models", &self.owner, &self.name, "revision", &self.revision])?;
        let (revision, _) = self.json::<Revision>(url).await?;
        if !is_commit(&revision.sha) {
            return Err(SourceError::because("the hub's answer names no commit"));
        }
        self.revision = revision.sha;
        Ok(())
    }

    /// All files of the repository.
    ///
    /// # Errors
    /// The hub cannot be reached, or has no such repository or revision.
    pub async fn list(&self) -> Result<Vec<FileSpec>, SourceError> {
        let mut url = self.url(&["api", "models", &self.owner, &self.name, "tree", &self.revision])?;
        url.set_query(Some("recursive=true"));
        let mut files = Vec::new();
        for _ in 0..LIST_PAGES_MAX {
            let (page, next) = self.json::<Vec<TreeEntry>>(url).await?;
            files.extend(page.into_iter().filter_map(TreeEntry::file));
            match next {
                None => return Ok(files),
                // The token is for the endpoint alone.
                Some(next) if next.origin() == self.endpoint.origin() => url = next,
                Some(_) => return Err(SourceError::because("the hub's list of files goes on at another host")),
            }
        }
        Err(SourceError::because("the hub's list of files has no end"))
    }

    /// A copy in the hub's own cache (filled by other tools), at this revision. Makes no connection.
    pub async fn cached(&self, file: &str) -> Option<PathBuf> {
        let repo = self.hub.model(&self.owner, &self.name);
        let lookup = repo.download_file().filename(file).revision(self.revision.clone()).local_files_only(true);
        lookup.send().await.ok()
    }

    /// What the hub's own cache holds at this revision: each file is a link to its content, which lies under its digest.
    /// Files without that are left out, since nothing says what they should be. Makes no connection.
    #[must_use]
    pub fn cached_files(&self) -> Vec<FileSpec> {
        let folder = self.hub.cache_dir().join(format!("models--{}--{}", self.owner, self.name));
        let commit = if is_commit(&self.revision) {
            Some(self.revision.clone())
        } else {
            std::fs::read_to_string(folder.join("refs").join(&self.revision)).ok().map(|c| c.trim().to_owned())
        };
        let Some(commit) = commit.filter(|c| is_commit(c)) else { return Vec::new() };
        let snapshot = folder.join("snapshots").join(commit);
        let Ok(entries) = std::fs::read_dir(&snapshot) else { return Vec::new() };
        let describe = |name: String| {
            // Of a folder, as a sentence transformer has one for each module, what matters is its configuration.
            let is_folder = std::fs::symlink_metadata(snapshot.join(&name)).ok()?.is_dir();
            let name = if is_folder { format!("{name}/config.json") } else { name };
            let target = std::fs::read_link(snapshot.join(&name)).ok()?;
            let digest = Digest::from_hex(target.file_name()?.to_str()?)?;
            let bytes = std::fs::metadata(snapshot.join(&name)).ok().filter(std::fs::Metadata::is_file)?.len();
            Some(FileSpec { name, bytes, digest })
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut files: Vec<FileSpec> = names.filter_map(describe).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        files
    }

    /// Fetches `file` into the model's folder as `local`, going on where an earlier pull stopped. Not a byte more than
    /// `bytes` is kept.
    ///
    /// # Errors
    /// The hub cannot be reached, has another file than expected, or the connection broke; disk faults.
    pub async fn fetch(&self, dir: &ModelDir, file: &str, local: &str, bytes: u64) -> Result<Partial, SourceError> {
        let mut partial = dir.partial(local)?;
        if partial.len() > bytes {
            partial.truncate(0)?;
        }
        if partial.len() == bytes {
            return Ok(partial);
        }
        let mut path = vec![self.owner.as_str(), &self.name, "resolve", &self.revision];
        path.extend(file.split('/'));
        let url = self.url(&path)?;
        let response = self.open(&url, &mut partial, bytes).await?;
        let progress = Progress::new(local, bytes);
        progress.resume_at(partial.len());
        let received = receive(response, &mut partial, bytes, &progress).await;
        match &received {
            Ok(()) => progress.finish(partial.len()),
            Err(_) => progress.abandon(),
        }
        received.map(|()| partial)
    }

    /// Asks for what the partial file lacks; if the answer is something else, for all of it.
    async fn open(&self, url: &Url, partial: &mut Partial, bytes: u64) -> Result<Response, SourceError> {
        let mut response = None;
        if !partial.is_empty() {
            let answer = self.get(url, Some(partial.len())).await?;
            match answer.status() {
                StatusCode::PARTIAL_CONTENT if range_of(&answer) == Some((partial.len(), bytes)) => return Ok(answer),
                // The server knows no ranges: this is the whole file.
                StatusCode::OK => response = Some(answer),
                StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {}
                _ => return Err(self.refused(&answer)),
            }
            partial.truncate(0)?;
        }
        let response = match response {
            Some(response) => response,
            None => self.get(url, None).await?,
        };
        if response.status() != StatusCode::OK {
            return Err(self.refused(&response));
        }
        match response.content_length() {
            Some(length) if length != bytes => {
                Err(SourceError::because(format!("the hub's file has {length} bytes, but {bytes} were expected")))
            }
            _ => Ok(response),
        }
    }

    /// Sends a request and waits for the head of the answer.
    async fn get(&self, url: &Url, from: Option<u64>) -> Result<Response, SourceError> {
        let mut request = self.http.get(url.clone());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(from) = from {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        match tokio::time::timeout(FIRST_ANSWER, request.send()).await {
            Ok(sent) => sent.map_err(|e| self.failed(&e)),
            Err(_) => Err(self.silent()),
        }
    }

    /// Reads an answer in JSON, and where the list that it is a page of goes on.
    async fn json<T: serde::de::DeserializeOwned>(&self, url: Url) -> Result<(T, Option<Url>), SourceError> {
        let response = self.get(&url, None).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(&response));
        }
        let link = response.headers().get(LINK).and_then(|l| l.to_str().ok());
        let next = link.and_then(next_page).and_then(|l| url.join(l).ok());
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = tokio::time::timeout(FIRST_ANSWER, stream.next()).await.map_err(|_| self.silent())? {
            let chunk = chunk.map_err(|e| self.failed(&e))?;
            if body.len() + chunk.len() > LIST_BYTES_MAX {
                return Err(SourceError::because("the hub's list of files is too long"));
            }
            body.extend_from_slice(&chunk);
        }
        let value = serde_json::from_slice(&body)
            .map_err(|e| SourceError::because(format!("the hub's answer is not what was expected: {e}")))?;
        Ok((value, next))
    }

    fn url(&self, segments: &[&str]) -> Result<Url, SourceError> {
        let mut url = self.endpoint.clone();
        match url.path_segments_mut() {
            Ok(mut path) => path.pop_if_empty().extend(segments),
            Err(()) => return Err(SourceError::because("HF_ENDPOINT is no web address")),
        };
        Ok(url)
    }

    /// One line: of a connection that failed, its innermost cause ("failed to lookup address information") says most.
    fn failed(&self, error: &reqwest::Error) -> SourceError {
        if error.is_timeout() {
            return self.silent();
        }
        SourceError::because(format!("cannot reach {}: {}", self.host(), innermost(error)))
    }

    fn silent(&self) -> SourceError {
        SourceError::because(format!("{} did not answer within {} s", self.host(), FIRST_ANSWER.as_secs()))
    }

    fn host(&self) -> &str {
        self.endpoint.host_str().unwrap_or("the hub")
    }

    fn refused(&self, response: &Response) -> SourceError {
        let status = response.status();
        let why = match status.as_u16() {
            401 | 403 if self.token.is_none() => ": no such repository, or one that needs HF_TOKEN",
            401 | 403 => ": no such repository, or HF_TOKEN may not read it",
            404 => ": no such repository, revision or file",
            429 => ": too many requests",
            _ => "",
        };
        SourceError::because(format!("{} answered {status}{why}", self.host()))
    }
}

/// Follows a download to its end, which must be the file's.
async fn receive(
    response: Response,
    partial: &mut Partial,
    bytes: u64,
    progress: &Progress,
) -> Result<(), SourceError> {
    let mut stream = response.bytes_stream();
    loop {
        let chunk = match tokio::time::timeout(STALL, stream.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(None) => break,
            Ok(Some(Err(e))) => {
                return Err(SourceError::because(format!(
                    "the connection broke at {} of {bytes} bytes: {}",
                    partial.len(),
                    innermost(&e)
                )));
            }
            Err(_) => return Err(SourceError::because(format!("no data for {} s", STALL.as_secs()))),
        };
        if partial.len() + chunk.len() as u64 > bytes {
            partial.truncate(0)?;
            return Err(SourceError::because(format!("the hub sends more than the {bytes} bytes expected")));
        }
        partial.append(&chunk)?;
        progress.set(partial.len());
    }
    if partial.len() == bytes {
        return Ok(());
    }
    Err(SourceError::because(format!("the download ended at {} of {bytes} bytes", partial.len())))
}

/// An entry of the hub's list of files.
#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<Lfs>,
}

/// Large files are not in git: git holds a pointer, whose `oid` is not the content's.
#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl TreeEntry {
    /// The file, unless this is a folder or has no digest to be checked by.
    fn file(self) -> Option<FileSpec> {
        let (hex, bytes) = self.lfs.map_or((self.oid, self.size), |lfs| (lfs.oid, lfs.size));
        let digest = Digest::from_hex(hex.strip_prefix("sha256:").unwrap_or(&hex))?;
        (self.kind == "file").then_some(FileSpec { name: self.path, bytes, digest })
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Where a partial answer begins, and the length of the whole file (`bytes START-END/LENGTH`).
fn range_of(response: &Response) -> Option<(u64, u64)> {
    parse_range(response.headers().get(CONTENT_RANGE)?.to_str().ok()?)
}

fn parse_range(value: &str) -> Option<(u64, u64)> {
    let (range, length) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end, length) = (start.parse().ok()?, end.parse::<u64>().ok()?, length.parse().ok()?);
    (end.checked_add(1) == Some(length)).then_some((start, length))
}

/// The `rel="next"` of a Link header.
fn next_page(link: &str) -> Option<&str> {
    let links = link.split(',').filter_map(|l| l.split_once(';'));
    let next = links.into_iter().find(|(_, rel)| rel.contains("rel=\"next\""))?.0;
    next.trim().strip_prefix('<')?.strip_suffix('>')
}

/// The hub's token, where its own tools look for it; hf-hub keeps what it finds to itself.
fn token() -> Option<String> {
    let var = |name: &str| std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
    let file =
        |path: PathBuf| std::fs::read_to_string(path).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
    if var("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    var("HF_TOKEN")
        .or_else(|| var("HF_TOKEN_PATH").and_then(|path| file(path.into())))
        .or_else(|| file(hf_hub::hf_home().join("token")))
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut root = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    root.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_are_checked() {
        for bad in ["gpt2", "a/b/c", "/b", "a/", "", "../b", "a/.."] {
            assert!(Repo::new(bad, None).is_err(), "{bad}");
        }
        assert!(Repo::new("org/repo", Some("main")).is_ok());
    }

    #[test]
    fn a_revision_is_one_segment_of_the_address() {
        let repo = Repo::new("org/repo", Some("a/b?c")).unwrap();
        let url = repo.url(&["api", "models", "org", "repo", "tree", &repo.revision]).unwrap();
        assert!(url.path().ends_with("/api/models/org/repo/tree/a%2Fb%3Fc"), "{url}");
    }

    #[test]
    fn digests_are_those_of_the_content() {
        let (sha, oid) = ("a".repeat(64), "b".repeat(40));
        let page = format!(
            r#"[{{"type":"directory","oid":"{oid}","size":0,"path":"d"}},
                {{"type":"file","oid":"{oid}","size":3,"path":"c.json"}},
                {{"type":"file","oid":"{oid}","size":9,"path":"m.gguf","lfs":{{"oid":"{sha}","size":9,"pointerSize":133}}}}]"#
        );
        let entries: Vec<TreeEntry> = serde_json::from_str(&page).unwrap();
        let files: Vec<FileSpec> = entries.into_iter().filter_map(TreeEntry::file).collect();
        let expected = [("c.json", 3, Digest::GitBlob(oid)), ("m.gguf", 9, Digest::Sha256(sha))];
        assert_eq!(files, expected.map(|(name, bytes, digest)| FileSpec { name: name.into(), bytes, digest }));
    }

    #[test]
    fn only_a_range_to_the_end_is_taken() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, 10)));
        for bad in ["bytes 5-8/10", "bytes */10", "bytes 5-9/*", "5-9/10", ""] {
            assert_eq!(parse_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn lists_go_on_where_the_header_says() {
        assert_eq!(next_page("<http://h/x?cursor=1>; rel=\"next\""), Some("http://h/x?cursor=1"));
        assert_eq!(next_page("</a>; rel=\"prev\", </b>; rel=\"next\""), Some("/b"));
        assert_eq!(next_page("</a>; rel=\"prev\""), None);
    }
}
