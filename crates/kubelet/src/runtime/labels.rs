//! The labels and annotations by which containers and sandboxes are recognised, after a restart of the daemon too. The names
//! are upstream's, so that tools (and an upstream kubelet) recognise them as well.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::podutil;

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

const HASH: &str = "io.kubernetes.container.hash";
const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
const POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
const POD_DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";
const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
const PORTS: &str = "io.kubernetes.container.ports";

pub fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.insert(POD_NAME.to_owned(), podutil::name(pod).to_owned());
    labels.insert(POD_NAMESPACE.to_owned(), podutil::namespace(pod).to_owned());
    labels.insert(POD_UID.to_owned(), podutil::uid(pod).to_owned());
    labels
}

pub fn container_labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    HashMap::from([
        (POD_NAME.to_owned(), podutil::name(pod).to_owned()),
        (POD_NAMESPACE.to_owned(), podutil::namespace(pod).to_owned()),
        (POD_UID.to_owned(), podutil::uid(pod).to_owned()),
        (CONTAINER_NAME.to_owned(), container.name.clone()),
    ])
}

pub fn container_annotations(pod: &Pod, container: &Container, restart_count: u32) -> HashMap<String, String> {
    let mut annotations = HashMap::from([
        (HASH.to_owned(), format!("{:x}", container_hash(container))),
        (RESTART_COUNT.to_owned(), restart_count.to_string()),
        (MESSAGE_PATH.to_owned(), termination_message_path(container).to_owned()),
        (MESSAGE_POLICY.to_owned(), container.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned())),
    ]);
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        annotations.insert(POD_DELETION_GRACE.to_owned(), seconds.to_string());
    }
    if let Some(seconds) = podutil::spec(pod).termination_grace_period_seconds {
        annotations.insert(POD_GRACE.to_owned(), seconds.to_string());
    }
    let json = |value: serde_json::Result<String>| value.unwrap_or_default();
    if let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
        annotations.insert(PRE_STOP.to_owned(), json(serde_json::to_string(hook)));
    }
    if let Some(ports) = &container.ports {
        annotations.insert(PORTS.to_owned(), json(serde_json::to_string(ports)));
    }
    annotations
}

pub fn termination_message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/dev/termination-log")
}

/// What a container tells of itself by its annotations. Absent or unreadable parts take upstream's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotated {
    pub hash: Option<u64>,
    pub restart_count: u32,
    pub message_path: String,
    pub message_from_logs: bool,
    pub grace_seconds: Option<i64>,
}

pub fn read_annotations(annotations: &HashMap<String, String>) -> Annotated {
    let get = |key: &str| annotations.get(key).map(String::as_str);
    Annotated {
        hash: get(HASH).and_then(|text| u64::from_str_radix(text, 16).ok()),
        restart_count: get(RESTART_COUNT).and_then(|text| text.parse().ok()).unwrap_or(0),
        message_path: get(MESSAGE_PATH).unwrap_or_default().to_owned(),
        message_from_logs: get(MESSAGE_POLICY) == Some("FallbackToLogsOnError"),
        grace_seconds: get(POD_DELETION_GRACE).or(get(POD_GRACE)).and_then(|text| text.parse().ok()),
    }
}

/// Changes when the container must be replaced: of its spec only the image can change in place. FNV-1a over name and image.
pub fn container_hash(container: &Container) -> u64 {
    let image = container.image.as_deref().unwrap_or_default();
    let bytes = container.name.bytes().chain([0]).chain(image.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_survive_the_round_trip_and_garbage_is_harmless() {
        let container = Container {
            name: "web".to_owned(),
            image: Some("busybox:1".to_owned()),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            ..Container::default()
        };
        let spec =
            k8s_openapi::api::core::v1::PodSpec { termination_grace_period_seconds: Some(7), ..Default::default() };
        let pod = Pod { spec: Some(spec), ..Pod::default() };
        let read = read_annotations(&container_annotations(&pod, &container, 3));
        let expected = Annotated {
            hash: Some(container_hash(&container)),
            restart_count: 3,
            message_path: "/dev/termination-log".to_owned(),
            message_from_logs: true,
            grace_seconds: Some(7),
        };
        assert_eq!(read, expected);
        let garbage = HashMap::from([(HASH.to_owned(), "xyz".to_owned()), (RESTART_COUNT.to_owned(), "-1".to_owned())]);
        assert_eq!(read_annotations(&garbage), Annotated::default());
    }
}
