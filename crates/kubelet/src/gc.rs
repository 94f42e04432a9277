//! Cleaning up: directories and sandboxes of pods that are no more, and images that nobody uses when the disk fills.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::node::machine;
use crate::podutil;
use crate::shared::{Handle, Shared};

/// How often the image file system is looked at.
const IMAGE_LOOK: Duration = Duration::from_secs(300);
/// Images are given this long to be used.
const LEAST_IMAGE_AGE: Duration = Duration::from_secs(120);

/// Unmounts everything mounted below `dir`, deepest first.
pub fn unmount_below(dir: &Path) -> Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::file("read", "/proc/self/mountinfo"))?;
    let mut points: Vec<PathBuf> = mount_points(&table).filter(|point| point.starts_with(dir)).collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().len()));
    for point in points {
        nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH)
            .map_err(|errno| Error::file("unmount", &point)(errno.into()))?;
    }
    Ok(())
}

/// Whether something is mounted exactly there, were it a directory of the same file system.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::file("read", "/proc/self/mountinfo"))?;
    Ok(mount_points(&table).any(|point| point == path))
}

/// The fifth word of each line, with its octal escapes undone.
fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> + '_ {
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(|word| {
        let mut path = String::with_capacity(word.len());
        let mut rest = word;
        while let Some((head, tail)) = rest.split_once('\\') {
            path.push_str(head);
            let code = tail.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
            match code {
                Some(code) => {
                    path.push(char::from(code));
                    rest = &tail[3..];
                }
                None => {
                    path.push('\\');
                    rest = tail;
                }
            }
        }
        path.push_str(rest);
        PathBuf::from(path)
    })
}

/// Removes the pod's directory and logs. What is still mounted is unmounted first, never descended into.
pub async fn remove_pod_dirs(config: &crate::Config, pod: &Pod) -> Result<()> {
    let dir = config.pod_dir(podutil::uid(pod));
    let logs = config.pod_log_dir(podutil::namespace(pod), podutil::name(pod), podutil::uid(pod));
    remove_dirs(vec![dir, logs]).await
}

async fn remove_dirs(dirs: Vec<PathBuf>) -> Result<()> {
    let work = move || {
        for dir in dirs {
            unmount_below(&dir)?;
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::file("remove", &dir)(error));
                }
                _ => {}
            }
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Error::Cancelled))
}

/// Removes what is left on disk of pods that `known` does not name (they went while the daemon was away).
pub async fn remove_orphaned_dirs(shared: &Shared, known: &HashSet<String>) {
    let children = |dir: PathBuf| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let pods = children(shared.config.root_dir.join("pods"));
    let logs = children(shared.config.log_dir.join("pods"));
    let pods = pods.into_iter().filter(|path| !known.contains(&name(path)));
    let logs = logs.into_iter().filter(|path| {
        let name = name(path);
        let uid = name.rsplit_once('_').map(|(_, uid)| uid);
        uid.is_some_and(|uid| !known.contains(uid))
    });
    let orphans: Vec<PathBuf> = pods.chain(logs).collect();
    if orphans.is_empty() {
        return;
    }
    tracing::info!(count = orphans.len(), "removing directories of pods that are no more");
    if let Err(error) = remove_dirs(orphans).await {
        tracing::warn!(%error, "orphaned pod directories not removed");
    }
}

/// Collects unused images whenever the image file system is fuller than the high mark.
pub async fn run_images(shared: Handle, shutdown: CancellationToken) {
    // When each image was first seen or last used.
    let mut used: HashMap<String, Timestamp> = HashMap::new();
    loop {
        if let Err(error) = collect_images(&shared, &mut used).await {
            tracing::debug!(%error, "images not collected");
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(IMAGE_LOOK)).await.is_none() {
            return;
        }
    }
}

async fn collect_images(shared: &Shared, used: &mut HashMap<String, Timestamp>) -> Result<()> {
    let now = Timestamp::now();
    let mut images = shared.runtime.list_images().await?;
    if let Some(sandbox) = &shared.config.sandbox_image
        && let Some(sandbox) = shared.runtime.image_status(sandbox).await?
    {
        // Not every release of containerd says so itself.
        images.iter_mut().filter(|image| image.id == sandbox.id).for_each(|image| image.pinned = true);
    }
    let containers = shared.runtime.list_containers(&[]).await?;
    let mut in_use: HashSet<String> = containers.iter().map(|container| container.image_ref.clone()).collect();
    for reference in shared.store.list().iter().flat_map(|record| volume_images(&record.pod)) {
        in_use.extend(shared.runtime.image_status(&reference).await?.map(|image| image.id));
    }
    used.retain(|id, _| images.iter().any(|image| image.id == *id));
    for image in &images {
        let names = || std::iter::once(&image.id).chain(&image.repo_digests).chain(&image.repo_tags);
        if image.pinned || names().any(|name| in_use.contains(name)) {
            used.insert(image.id.clone(), now);
        } else {
            used.entry(image.id.clone()).or_insert(now);
        }
    }
    let Some(image_dir) = shared.image_dir().await? else { return Ok(()) };
    let (total, available) = machine::storage(&image_dir);
    let sizes = images.iter().filter(|image| !image.pinned).map(|image| Unused {
        id: image.id.clone(),
        bytes: i64::try_from(image.size).unwrap_or(i64::MAX),
        since: used.get(&image.id).copied().unwrap_or(now),
    });
    let (high, low) = (shared.config.image_gc_high_percent, shared.config.image_gc_low_percent);
    for id in to_remove(sizes.collect(), total, available, high, low, now) {
        tracing::info!(image = id, "removing an unused image, the disk is filling");
        shared.runtime.remove_image(&id).await?;
    }
    Ok(())
}

/// Images that the pod's volumes are made of.
fn volume_images(pod: &Pod) -> Vec<String> {
    let volumes = podutil::spec(pod).volumes.iter().flatten();
    volumes.filter_map(|volume| volume.image.as_ref()?.reference.clone()).collect()
}

struct Unused {
    id: String,
    bytes: i64,
    since: Timestamp,
}

/// The images to remove, longest unused first, until the low mark is reached. Pure.
fn to_remove(mut images: Vec<Unused>, total: i64, available: i64, high: u8, low: u8, now: Timestamp) -> Vec<String> {
    let used_percent = 100 - available.saturating_mul(100) / total.max(1);
    if total <= 0 || used_percent < i64::from(high) {
        return Vec::new();
    }
    let mut excess = total / 100 * (100 - i64::from(low)) - available;
    let old = |image: &Unused| now.duration_since(image.since).unsigned_abs() >= LEAST_IMAGE_AGE;
    images.retain(old);
    images.sort_by_key(|image| image.since);
    let mut chosen = Vec::new();
    for image in images {
        if excess <= 0 {
            break;
        }
        excess -= image.bytes;
        chosen.push(image.id);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_images_go_until_the_low_mark() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let image = |id: &str, bytes: i64, since: i64| Unused { id: id.to_owned(), bytes, since: at(since) };
        let images = || vec![image("new", 50, 950), image("b", 5, 300), image("a", 4, 200), image("c", 5, 400)];
        let chosen = |available: i64| to_remove(images(), 1000, available, 85, 80, at(1000)).join(" ");
        assert_eq!(chosen(160), "");
        assert_eq!(chosen(150), "a b c");
        assert_eq!(to_remove(images(), 100, 14, 85, 80, at(1000)).join(" "), "a b");
        assert!(to_remove(images(), 0, 0, 85, 80, at(1000)).is_empty());
    }

    #[test]
    fn mount_points_with_spaces() {
        let table = "36 35 98:0 /mnt1 /a\\040b/c rw - ext3 /dev/root rw\n1 2 3 4 /plain rw\n";
        let points: Vec<PathBuf> = mount_points(table).collect();
        assert_eq!(points, [PathBuf::from("/a b/c"), PathBuf::from("/plain")]);
    }
}
