//! `image`: the files of an image, read-only and without programs to run. The runtime keeps a view of the image for each volume,
//! which is mounted here, so that runtimes whose CRI cannot mount images serve as well.

use std::path::Path;

use cri::messages::containerd::SnapshotMount;
use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};
use nix::mount::{MsFlags, mount};

use crate::error::{Error, Result};
use crate::objects::Holder;
use crate::pod::sandbox;
use crate::shared::Shared;
use crate::{gc, images, podutil};

/// Directories of such volumes lie below this one in the pod's.
pub const PLUGIN: &str = "image";

/// Pulls the image as its policy says and mounts it, unless that was done already.
pub async fn set_up(
    shared: &Shared,
    pod: &Pod,
    name: &str,
    source: &ImageVolumeSource,
    path: &Path,
    objects: &Holder,
) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::file("create directory", path))?;
    if gc::is_mount_point(path)? {
        return Ok(());
    }
    // What is pulled, by which policy and with which secrets, follows the rules of containers.
    let wanted = Container {
        image: source.reference.clone(),
        image_pull_policy: source.pull_policy.clone(),
        ..Container::default()
    };
    let config = sandbox::config_for_containers(shared, pod, 0);
    let pulled = Box::pin(images::ensure(shared, pod, &wanted, &podutil::pod_ref(pod), objects, &config)).await;
    let image = pulled.map_err(|error| Error::Invalid(format!("{}: {}", error.reason, error.message)))?;
    let mounts = shared.runtime.view_image(&image.id, &key(podutil::uid(pod), name)).await?;
    mounts.iter().try_for_each(|one| mount_view(one, path))
}

/// Gives back the views below `volumes`, whose mounts are gone.
pub async fn tear_down(shared: &Shared, uid: &str, volumes: &Path) -> Result<()> {
    let dir = volumes.join(format!("kubernetes.io~{PLUGIN}"));
    for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
        shared.runtime.remove_view(&key(uid, &entry.file_name().to_string_lossy())).await?;
    }
    Ok(())
}

fn key(uid: &str, volume: &str) -> String {
    format!("coxswain-image-volume/{uid}/{volume}")
}

fn mount_view(view: &SnapshotMount, path: &Path) -> Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let none = None::<&str>;
    let (bind, options) = data_of(view);
    let mounted = if bind {
        // The flags of a bind mount are set by a second call only.
        mount(Some(view.source.as_str()), path, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .and_then(|()| mount(none, path, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, none))
    } else {
        mount(Some(view.source.as_str()), path, Some(view.r#type.as_str()), flags, Some(options.as_str()))
    };
    mounted.map_err(|errno| Error::file("mount image at", path)(errno.into()))
}

/// Whether it is a bind mount, and the options that the file system reads; the others are flags, which are ours to set.
fn data_of(view: &SnapshotMount) -> (bool, String) {
    const FLAGS: [&str; 4] = ["ro", "rw", "bind", "rbind"];
    let options: Vec<&str> = view.options.iter().map(String::as_str).filter(|option| !FLAGS.contains(option)).collect();
    (view.r#type == "bind" || view.options.iter().any(|option| option == "rbind"), options.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_not_options() {
        let view = |kind: &str, options: &[&str]| {
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            data_of(&SnapshotMount { r#type: kind.to_owned(), options, ..SnapshotMount::default() })
        };
        assert_eq!(view("bind", &["ro", "rbind"]), (true, String::new()));
        assert_eq!(
            view("overlay", &["index=off", "lowerdir=/a:/b", "ro"]),
            (false, "index=off,lowerdir=/a:/b".to_owned())
        );
    }
}
