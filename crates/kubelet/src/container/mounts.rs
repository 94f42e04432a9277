//! What is mounted into a container: its volume mounts, the hosts file, the termination message file.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use cri::messages::container::{Mount, MountPropagation};
use k8s_openapi::api::core::v1::VolumeMount;

use super::expand;
use super::spec::Request;
use crate::error::{Error, Result};
use crate::runtime::labels;
use crate::{hosts, podutil, volume};

pub async fn build(request: &Request<'_>, environment: &BTreeMap<&str, &str>) -> Result<Vec<Mount>> {
    let Request { shared, pod, container, pod_ips, volumes, .. } = *request;
    let mut mounts = Vec::new();
    let mut mounts_hosts_itself = false;
    for mount in container.volume_mounts.iter().flatten() {
        mounts_hosts_itself |= mount.mount_path.trim_end_matches('/') == "/etc/hosts";
        let dir = volumes.path(&mount.name).ok_or_else(|| {
            Error::Missing(format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                mount.name, container.name
            ))
        })?;
        let host_path = host_path(mount, &dir, environment)?;
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            _ => MountPropagation::PropagationPrivate,
        };
        mounts.push(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: mount.read_only == Some(true) || volumes.is_read_only(&mount.name),
            selinux_relabel: false,
            propagation: propagation.into(),
            ..Mount::default()
        });
    }
    if !mounts_hosts_itself {
        let config = &shared.config;
        let file = config.pod_dir(podutil::uid(pod)).join("etc-hosts");
        let text = hosts::render(pod, pod_ips, &config.cluster_domain, || std::fs::read_to_string("/etc/hosts"));
        tokio::fs::write(&file, text).await.map_err(Error::file("write", &file))?;
        mounts.push(plain("/etc/hosts", &file));
    }
    let message_path = labels::termination_message_path(container);
    mounts.push(plain(message_path, &message_file(request).await?));
    Ok(mounts)
}

fn plain(container_path: &str, host_path: &Path) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Mount::default()
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn host_path(mount: &VolumeMount, dir: &Path, environment: &BTreeMap<&str, &str>) -> Result<PathBuf> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let sub_path = match (given(&mount.sub_path), given(&mount.sub_path_expr)) {
        (Some(path), _) => path,
        (None, Some(text)) => {
            let missing = std::cell::Cell::new(false);
            let path = expand::expand(&text, |name| {
                let value = environment.get(name).map(|value| (*value).to_owned());
                missing.set(missing.get() || value.is_none());
                value
            });
            if missing.get() {
                return Err(Error::Missing(format!("missing value for reference in subPathExpr \"{text}\"")));
            }
            path
        }
        (None, None) => return Ok(dir.to_owned()),
    };
    volume::subpath::ensure(dir, &sub_path)
}

/// A fresh file that any user of the container may write its last words to.
async fn message_file(request: &Request<'_>) -> Result<PathBuf> {
    let Request { shared, pod, container, .. } = *request;
    let dir = shared.config.pod_dir(podutil::uid(pod)).join("containers").join(&container.name);
    tokio::fs::create_dir_all(&dir).await.map_err(Error::file("create directory", &dir))?;
    let file = dir.join(format!("{:08x}", rand::random::<u32>()));
    tokio::fs::write(&file, "").await.map_err(Error::file("write", &file))?;
    let mode = std::fs::Permissions::from_mode(0o666);
    tokio::fs::set_permissions(&file, mode).await.map_err(Error::file("change the mode of", &file))?;
    Ok(file)
}
