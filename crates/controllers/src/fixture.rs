//! Objects for tests, written as short YAML.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The instant that fixtures count seconds back from.
pub fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("in range")
}

pub fn ago(seconds: i64) -> Time {
    Time(Timestamp::from_second(now().as_second() - seconds).expect("in range"))
}

pub fn yaml<T: DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PodLine {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    owner: Option<String>,
    #[serde(default)]
    deleting: bool,
    phase: Option<String>,
    node: Option<String>,
    /// Ready for this many seconds.
    ready: Option<i64>,
    /// Created this many seconds ago.
    #[serde(default)]
    age: i64,
    ip: Option<String>,
    #[serde(default)]
    restarts: i32,
}

/// One pod from one line of YAML flow style.
pub fn pod(line: &str) -> Pod {
    let line: PodLine = yaml(line);
    let mut pod = Pod::default();
    pod.metadata.namespace = Some("ns".into());
    pod.metadata.uid = Some(format!("uid-{}", line.name));
    pod.metadata.name = Some(line.name);
    pod.metadata.labels = Some(line.labels).filter(|labels| !labels.is_empty());
    pod.metadata.annotations = Some(line.annotations).filter(|annotations| !annotations.is_empty());
    pod.metadata.creation_timestamp = Some(ago(line.age));
    pod.metadata.deletion_timestamp = line.deleting.then(|| ago(1));
    pod.metadata.owner_references = line.owner.map(|uid| {
        vec![OwnerReference { uid, kind: "ReplicaSet".into(), controller: Some(true), ..OwnerReference::default() }]
    });
    let ready = PodCondition {
        type_: "Ready".into(),
        status: if line.ready.is_some() { "True" } else { "False" }.into(),
        last_transition_time: line.ready.map(ago),
        ..PodCondition::default()
    };
    pod.spec.get_or_insert_default().node_name = line.node;
    let restarts = k8s_openapi::api::core::v1::ContainerStatus { restart_count: line.restarts, ..Default::default() };
    pod.status = Some(PodStatus {
        phase: Some(line.phase.unwrap_or_else(|| "Running".into())),
        conditions: Some(vec![ready]),
        container_statuses: Some(vec![restarts]),
        pod_ips: line.ip.as_ref().map(|ip| vec![k8s_openapi::api::core::v1::PodIP { ip: ip.clone() }]),
        pod_ip: line.ip,
        ..PodStatus::default()
    });
    pod
}

/// One pod for each line that is not blank.
pub fn pods(lines: &str) -> Vec<Arc<Pod>> {
    lines.lines().filter(|line| !line.trim().is_empty()).map(|line| Arc::new(pod(line.trim()))).collect()
}

pub fn names<K: kube::Resource>(objects: &[Arc<K>]) -> Vec<String> {
    objects.iter().map(|object| object.meta().name.clone().unwrap_or_default()).collect()
}
