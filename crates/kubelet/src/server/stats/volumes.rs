//! How much the pods' volumes hold. Measuring walks directories, so it is done only when somebody asks, by one thread at a time,
//! and what was measured is shown for a minute.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::host::{self, Filesystem};
use crate::pods::PodRecord;

/// Upstream's `--volume-stats-agg-period`.
const SHOWN_FOR: Duration = Duration::from_secs(60);
/// A volume of more files is told by its file system alone.
const MOST_FILES: u64 = 1_000_000;
/// The kernel counts space in such blocks, whatever the file system's are.
const BLOCK_BYTES: u64 = 512;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSample {
    pub name: String,
    pub claim: Option<String>,
    pub time: Timestamp,
    pub filesystem: Filesystem,
}

type Known = HashMap<PathBuf, (Instant, Timestamp, Option<Filesystem>)>;

#[derive(Default)]
pub struct Measured(Arc<tokio::sync::Mutex<Known>>);

impl Measured {
    pub async fn of(&self, records: &[Arc<PodRecord>]) -> HashMap<String, Vec<VolumeSample>> {
        let mut known = self.0.clone().lock_owned().await;
        let paths: Vec<PathBuf> = records.iter().flat_map(|r| r.volumes.iter().map(|v| v.path.clone())).collect();
        let measured = tokio::task::spawn_blocking(move || {
            known.retain(|path, (at, ..)| at.elapsed() < SHOWN_FOR && paths.contains(path));
            for path in paths {
                if let Entry::Vacant(unknown) = known.entry(path) {
                    let measured = measure(unknown.key());
                    unknown.insert((Instant::now(), Timestamp::now(), measured));
                }
            }
            known.clone()
        });
        let measured = measured.await.unwrap_or_default();
        let samples = |record: &Arc<PodRecord>| {
            let samples = record.volumes.iter().filter_map(|volume| {
                let (_, time, filesystem) = measured.get(&volume.path)?;
                let (name, claim) = (volume.name.clone(), volume.claim.clone());
                Some(VolumeSample { name, claim, time: *time, filesystem: filesystem.clone()? })
            });
            (record.uid().to_owned(), samples.collect())
        };
        records.iter().map(samples).collect()
    }
}

/// The file system that the directory is on, with what the directory itself uses of it. Blocks.
fn measure(path: &Path) -> Option<Filesystem> {
    let whole = host::filesystem(path)?;
    let device = std::fs::symlink_metadata(path).ok()?.dev();
    let (mut used, mut files, mut left) = (0, 0, vec![path.to_owned()]);
    while let Some(next) = left.pop() {
        let Ok(meta) = std::fs::symlink_metadata(&next) else { continue };
        if meta.dev() != device {
            continue;
        }
        used += meta.blocks() * BLOCK_BYTES;
        files += 1;
        if files > MOST_FILES {
            return Some(whole);
        }
        if meta.is_dir() {
            left.extend(std::fs::read_dir(&next).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    Some(Filesystem { used, inodes_used: files, ..whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_counts_with_all_below_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("l")).unwrap();
        let measured = measure(dir.path()).unwrap();
        assert_eq!(measured.inodes_used, 4);
        assert!((100_000..200_000).contains(&measured.used), "{measured:?}");
        assert!(measured.capacity > measured.used);
        assert_eq!(measure(&dir.path().join("none")), None);
    }
}
