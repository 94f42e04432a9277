//! Rotation of container logs by size. The runtime keeps its file open, so the file is renamed and the runtime told to open
//! the path anew.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::pods::RunState;
use crate::shared::{Handle, Shared};

/// A log can grow past its limit for so long. Looking costs one `stat` for each running container.
const LOOK: Duration = Duration::from_secs(10);

pub async fn run(shared: Handle, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        for record in shared.store.list() {
            for container in record.containers.iter().filter(|container| container.state == RunState::Running) {
                let size = tokio::fs::metadata(&container.log_path).await.map_or(0, |meta| meta.len());
                if size < shared.config.container_log_max_bytes {
                    continue;
                }
                if let Err(error) = rotate(&shared, &container.id, &container.log_path).await {
                    tracing::warn!(log = %container.log_path.display(), %error, "log not rotated, will retry");
                }
            }
        }
    }
}

async fn rotate(shared: &Shared, id: &str, log: &Path) -> Result<()> {
    for old in surplus(log, shared.config.container_log_max_files) {
        tokio::fs::remove_file(&old).await.map_err(Error::file("remove", &old))?;
    }
    let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let rotated = PathBuf::from(format!("{}.{stamp}", log.display()));
    tokio::fs::rename(log, &rotated).await.map_err(Error::file("rename", log))?;
    if let Err(error) = shared.runtime.reopen_container_log(id).await {
        // Otherwise the log would go on under a name that nobody reads.
        tokio::fs::rename(&rotated, log).await.map_err(Error::file("rename", &rotated))?;
        return Err(error.into());
    }
    Ok(())
}

/// The oldest rotated parts, as many as must go so that with the current file and one more there are `most`.
fn surplus(log: &Path, most: usize) -> Vec<PathBuf> {
    let Some((dir, name)) = log.parent().zip(log.file_name().and_then(|name| name.to_str())) else { return Vec::new() };
    let prefix = format!("{name}.");
    let mut parts: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)))
        .map(|entry| entry.path())
        .collect();
    // Their names end with their time.
    parts.sort();
    let keep = most.saturating_sub(2);
    parts.truncate(parts.len().saturating_sub(keep));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_parts_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for name in ["0.log", "0.log.1", "0.log.2", "0.log.3", "0.log.4", "1.log.0"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let names = |most: usize| {
            let list = surplus(&log, most);
            list.iter().map(|path| path.extension().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(5), "1");
        assert_eq!(names(2), "1 2 3 4");
        assert_eq!(names(10), "");
    }
}
