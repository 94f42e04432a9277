//! Puts a container's whole runtime configuration together, reading the objects that its spec refers to.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use cri::messages::container::ImageSpec;
use cri::messages::container::{ContainerConfig, ContainerMetadata, KeyValue, LinuxContainerConfig};
use cri::messages::image::Image;
use cri::messages::sandbox::NamespaceMode;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::env::{self, Sources};
use super::fieldref::Facts;
use super::{expand, mounts, resources, security};
use crate::error::{Error, Result};
use crate::objects::Holder;
use crate::pod::sandbox;
use crate::podutil;
use crate::runtime::labels;
use crate::shared::Shared;
use crate::volume::PodVolumes;

pub struct Request<'a> {
    pub shared: &'a Shared,
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub image: &'a Image,
    pub pod_ips: &'a [IpAddr],
    pub restart_count: u32,
    pub volumes: &'a PodVolumes,
    pub objects: &'a Holder,
    /// The container whose process namespace is shared (ephemeral containers).
    pub target_id: Option<String>,
}

impl Request<'_> {
    pub fn facts(&self) -> Facts<'_> {
        facts(self.shared, self.pod_ips)
    }
}

pub fn facts<'a>(shared: &'a Shared, pod_ips: &'a [IpAddr]) -> Facts<'a> {
    Facts {
        node_ips: &shared.config.node_ips,
        pod_ips,
        node_cpu_milli: shared.machine.cpu_count.saturating_mul(1000),
        node_memory_bytes: shared.machine.memory_bytes,
        node_storage_bytes: shared.machine.storage_bytes,
    }
}

/// # Errors
/// The text of the container's CreateContainerConfigError.
pub async fn build(request: &Request<'_>) -> Result<ContainerConfig> {
    let Request { shared, pod, container, image, restart_count, .. } = *request;
    let environment = environment(request).await?;
    let known: BTreeMap<&str, &str> = environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expand = |words: &Option<Vec<String>>| -> Vec<String> {
        let lookup = |name: &str| known.get(name).map(|value| (*value).to_owned());
        words.iter().flatten().map(|word| expand::expand(word, lookup)).collect()
    };
    let mounts = mounts::build(request, &known).await?;
    let mut namespaces = sandbox::namespaces(podutil::spec(pod));
    if let Some(target) = &request.target_id {
        namespaces.pid = NamespaceMode::Target.into();
        namespaces.target_id.clone_from(target);
    }
    let security = security::context(pod, container, image, namespaces).map_err(Error::Invalid)?;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: restart_count }),
        image: Some(ImageSpec { image: image.id.clone(), ..ImageSpec::default() }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: text(&container.working_dir),
        envs: environment.iter().map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts,
        labels: labels::container_labels(pod, container),
        annotations: labels::container_annotations(pod, container, restart_count),
        log_path: format!("{}/{restart_count}.log", container.name),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::linux(pod, container, shared.machine.memory_bytes)),
            security_context: Some(security),
        }),
        ..ContainerConfig::default()
    })
}

async fn environment(request: &Request<'_>) -> Result<Vec<(String, String)>> {
    let Request { shared, pod, container, .. } = *request;
    let sources = sources(request).await?;
    let links = podutil::spec(pod).enable_service_links != Some(false);
    let services = shared.services.list();
    let services = env::service_variables(services.iter().map(AsRef::as_ref), podutil::namespace(pod), links);
    env::environment(pod, container, &services, &sources, &request.facts()).map_err(Error::Missing)
}

/// Reads all objects that the environment refers to.
async fn sources(request: &Request<'_>) -> Result<Sources> {
    let Request { container, objects, volumes, .. } = *request;
    let (mut config_maps, mut secrets, mut files) = (HashSet::new(), HashSet::new(), HashSet::new());
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.as_ref().map(|reference| reference.name.as_str()));
        secrets.extend(from.secret_ref.as_ref().map(|reference| reference.name.as_str()));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.as_ref().map(|reference| reference.name.as_str()));
        secrets.extend(source.secret_key_ref.as_ref().map(|reference| reference.name.as_str()));
        files.extend(source.file_key_ref.as_ref().map(|reference| (&reference.volume_name, &reference.path)));
    }
    let mut sources = Sources::default();
    for name in config_maps {
        if let Some(object) = objects.config_map(name).await? {
            sources.config_maps.insert(name.to_owned(), object.data.clone().unwrap_or_default());
        }
    }
    for name in secrets {
        if let Some(object) = objects.secret(name).await? {
            let data = object.data.clone().unwrap_or_default();
            sources.secrets.insert(name.to_owned(), data.into_iter().map(|(k, v)| (k, v.0)).collect());
        }
    }
    for (volume, path) in files {
        let Some(dir) = volumes.path(volume) else { continue };
        let Ok(file) = crate::volume::subpath::resolve(&dir, path) else { continue };
        if let Ok(text) = tokio::fs::read_to_string(file).await {
            sources.files.insert((volume.clone(), path.clone()), parse_env_file(&text));
        }
    }
    Ok(sources)
}

/// `KEY=value` lines; empty lines and those that begin with `#` are skipped, matching quotes around a value removed.
fn parse_env_file(text: &str) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = value.trim();
        let quoted = ['\'', '"'].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
        variables.insert(key.trim().to_owned(), quoted.unwrap_or(value).to_owned());
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_variables() {
        let read = parse_env_file("# comment\n\nA=1\n B = 'two words' \nC\nD=\"\nE=a=b\n");
        let text: Vec<String> = read.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(text, ["A=1", "B=two words", "D=\"", "E=a=b"]);
    }
}
