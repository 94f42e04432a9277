//! `/logs/`: the host's log files, as upstream's file server shows them.

use std::path::{Component, Path};

use futures::TryStreamExt as _;
use http::StatusCode;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use percent_encoding::percent_decode_str;
use tokio_util::io::ReaderStream;

use super::{BoxError, Refusal, Response, full, with_type};

/// A file below `root`, or the list of a directory. Links that lead out of `root` are not followed: pods may be able to make some.
pub async fn serve(root: &Path, path: &str) -> Result<Response, Refusal> {
    let missing = |_| Refusal::not_found("404 page not found\n");
    let decoded = percent_decode_str(path).decode_utf8_lossy().into_owned();
    if Path::new(&decoded).components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(Refusal::bad_request("invalid URL path\n"));
    }
    let root = tokio::fs::canonicalize(root).await.map_err(missing)?;
    let found = tokio::fs::canonicalize(root.join(&decoded)).await.map_err(missing)?;
    if !found.starts_with(&root) {
        return Err(Refusal::not_found("404 page not found\n"));
    }
    let metadata = tokio::fs::metadata(&found).await.map_err(missing)?;
    if metadata.is_dir() {
        return Ok(with_type(StatusCode::OK, "text/html; charset=utf-8", full(list(&found).await.map_err(missing)?)));
    }
    // Neither pipes nor devices: reading them may never end.
    if !metadata.is_file() {
        return Err(Refusal::not_found("404 page not found\n"));
    }
    let file = tokio::fs::File::open(&found).await.map_err(missing)?;
    let body = StreamBody::new(ReaderStream::new(file).map_ok(Frame::data).map_err(BoxError::from));
    Ok(with_type(StatusCode::OK, "text/plain; charset=utf-8", body.boxed_unsync()))
}

async fn list(directory: &Path) -> std::io::Result<String> {
    let mut names = Vec::new();
    let mut entries = tokio::fs::read_dir(directory).await?;
    while let Some(entry) = entries.next_entry().await? {
        let slash = if entry.file_type().await?.is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    let escape =
        |name: &str| name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
    let lines: String = names.iter().map(|name| format!("<a href=\"{0}\">{0}</a>\n", escape(name))).collect();
    Ok(format!("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n{lines}</pre>\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_outside_is_served() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("pods")).unwrap();
        std::fs::write(root.path().join("syslog"), "hello").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("link")).unwrap();
        let get = async |path: &str| match serve(root.path(), path).await {
            Ok(response) => {
                (200, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
            }
            Err(refusal) => (refusal.status.as_u16(), refusal.text),
        };
        assert_eq!(get("syslog").await, (200, "hello".to_owned()));
        let (status, listing) = get("").await;
        assert_eq!(status, 200);
        assert!(listing.contains("<a href=\"pods/\">pods/</a>\n<a href=\"syslog\">syslog</a>"), "{listing}");
        assert_eq!(get("link").await.0, 404);
        assert_eq!(get("../etc/passwd").await.0, 400);
        assert_eq!(get("%2e%2e/etc/passwd").await.0, 400);
        assert_eq!(get("//etc/passwd").await.0, 400);
    }
}
