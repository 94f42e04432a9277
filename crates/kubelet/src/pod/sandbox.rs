//! Pod sandboxes: configuration from the spec, and creation.

use std::collections::HashMap;

use client::EventType;

use cri::messages::sandbox::{
    DNSConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PortMapping, Protocol,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;

use super::memory::StartFailure;
use super::worker::Worker;
use crate::container::security;
use crate::error::{Error, Result};
use crate::runtime::labels;
use crate::shared::Shared;
use crate::{dns, podutil};

/// Creates the pod's sandbox. A failure is remembered, so that the next try waits.
pub async fn create(worker: &mut Worker, pod: &Pod, attempt: u32) -> Result<()> {
    let shared = worker.shared.clone();
    let now = Timestamp::now();
    worker.memory.attempt("", None, now);
    let config = config(&shared, pod, attempt);
    let begun = tokio::time::Instant::now();
    let made = match handler(&shared, pod).await {
        Ok(handler) => shared.runtime.run_pod_sandbox(config, &handler).await.map_err(Error::from),
        Err(error) => Err(error),
    };
    match made {
        Ok(id) => {
            shared.store.claim_runtime_id(podutil::uid(pod), &id);
            tracing::debug!(pod = %podutil::full_name(pod), took = ?begun.elapsed(), "sandbox runs");
            worker.memory.succeeded("");
        }
        Err(error) => {
            let message = format!("Failed to create pod sandbox: {error}");
            tracing::warn!(pod = %podutil::full_name(pod), %error, "sandbox not created");
            let object = podutil::pod_ref(pod);
            shared.recorder.event(&object, EventType::Warning, "FailedCreatePodSandBox", message.clone());
            worker.memory.failed("", StartFailure { reason: "", message }, None, now);
        }
    }
    Ok(())
}

/// The runtime's name for what the pod's RuntimeClass asks for; empty for the default.
async fn handler(shared: &Shared, pod: &Pod) -> Result<String> {
    let Some(name) = podutil::spec(pod).runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(String::new());
    };
    let class = Api::<RuntimeClass>::all(shared.api.clone()).get_opt(name).await?;
    let class = class
        .ok_or_else(|| Error::Missing(format!("failed to get sandbox runtime: RuntimeClass \"{name}\" not found")))?;
    Ok(class.handler)
}

pub fn config(shared: &Shared, pod: &Pod, attempt: u32) -> PodSandboxConfig {
    let spec = podutil::spec(pod);
    let (name, namespace, uid) = (podutil::name(pod), podutil::namespace(pod), podutil::uid(pod));
    let host_network = podutil::is_host_network(pod);
    let dns = dns::for_pod(pod, &shared.config, &dns::read_host(&shared.config.resolv_conf));
    let metadata =
        PodSandboxMetadata { name: name.to_owned(), namespace: namespace.to_owned(), uid: uid.to_owned(), attempt };
    let sysctls = spec.security_context.as_ref().and_then(|context| context.sysctls.as_ref());
    PodSandboxConfig {
        metadata: Some(metadata),
        hostname: if host_network { String::new() } else { dns::hostname(pod, &shared.config.cluster_domain) },
        log_directory: shared.config.pod_log_dir(namespace, name, uid).to_string_lossy().into_owned(),
        dns_config: Some(DNSConfig { servers: dns.servers, searches: dns.searches, options: dns.options }),
        port_mappings: port_mappings(spec),
        labels: labels::pod_labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: shared.cgroups.parent_of(pod),
            security_context: Some(security_context(spec)),
            sysctls: sysctls.into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
            ..LinuxPodSandboxConfig::default()
        }),
    }
}

fn security_context(spec: &PodSpec) -> LinuxSandboxSecurityContext {
    let context = spec.security_context.clone().unwrap_or_default();
    let value = |number: Option<i64>| number.map(|value| cri::messages::sandbox::Int64Value { value });
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let privileged = |c: &k8s_openapi::api::core::v1::Container| {
        c.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
    };
    let groups = context.fs_group.into_iter().chain(context.supplemental_groups.clone().unwrap_or_default());
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec)),
        run_as_user: value(context.run_as_user),
        run_as_group: value(context.run_as_group.filter(|_| context.run_as_user.is_some())),
        supplemental_groups: groups.collect(),
        privileged: all.clone().any(privileged),
        // The sandbox itself runs nothing of the user's; upstream gives it the runtime's default profile.
        seccomp: Some(security::runtime_default()),
        ..LinuxSandboxSecurityContext::default()
    }
}

/// Which namespaces the pod's containers have of their own, share, or take from the host.
pub fn namespaces(spec: &PodSpec) -> NamespaceOption {
    let mode = |of_host: Option<bool>| if of_host == Some(true) { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (Some(true), _) => NamespaceMode::Node,
        (_, Some(true)) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOption {
        network: mode(spec.host_network).into(),
        ipc: mode(spec.host_ipc).into(),
        pid: pid.into(),
        ..NamespaceOption::default()
    }
}

fn port_mappings(spec: &PodSpec) -> Vec<PortMapping> {
    if spec.host_network == Some(true) {
        return Vec::new();
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|container| podutil::is_sidecar(container));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .map(|port| {
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            PortMapping {
                protocol: protocol.into(),
                container_port: port.container_port,
                host_port: port.host_port.unwrap_or(0),
                host_ip: port.host_ip.clone().unwrap_or_default(),
            }
        })
        .collect()
}

/// The part of a sandbox's configuration that container creation repeats.
pub fn config_for_containers(shared: &Shared, pod: &Pod, attempt: u32) -> PodSandboxConfig {
    PodSandboxConfig {
        dns_config: None,
        port_mappings: Vec::new(),
        annotations: HashMap::new(),
        ..config(shared, pod, attempt)
    }
}
