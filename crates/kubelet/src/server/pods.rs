//! Which pods and containers a request means, and the lists of them.

use std::sync::Arc;

use http::StatusCode;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use serde_json::{Value, json};

use super::logs::{self, Log, LogOptions, Wanted};
use super::request::ContainerPath;
use super::{Query, Refusal, Response, Server, with_type};
use crate::pods::{PodRecord, RunState};

/// All pods of the node, as a `PodList`.
pub fn list(records: &[Arc<PodRecord>]) -> Value {
    pod_list(records.iter().map(|record| record.pod.as_ref().clone()))
}

/// The pods of which the runtime runs something, with those containers alone: what the runtime knows, no more.
pub fn running(records: &[Arc<PodRecord>]) -> Value {
    let pods = records.iter().filter_map(|record| {
        let running = record.containers.iter().filter(|container| container.state == RunState::Running);
        let containers: Vec<Value> =
            running.map(|container| json!({"name": container.name, "image": image(&record.pod, &container.name), "resources": {}})).collect();
        let meta = &record.pod.metadata;
        (!containers.is_empty()).then(|| {
            json!({
                "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid, "creationTimestamp": null},
                "spec": {"containers": containers},
                "status": {},
            })
        })
    });
    let items: Vec<Value> = pods.collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

fn pod_list(pods: impl Iterator<Item = Pod>) -> Value {
    let mut pods: Vec<Pod> = pods.collect();
    pods.sort_by(|a, b| (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name)));
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})
}

/// The image that the pod's spec has for a container.
pub fn image<'a>(pod: &'a Pod, container: &str) -> &'a str {
    let Some(spec) = &pod.spec else { return "" };
    let main = spec.containers.iter().map(|c| (&c.name, &c.image));
    let init = spec.init_containers.iter().flatten().map(|c| (&c.name, &c.image));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (&c.name, &c.image));
    let found = main.chain(init).chain(ephemeral).find(|(name, _)| *name == container);
    found.and_then(|(_, image)| image.as_deref()).unwrap_or_default()
}

fn has_container(pod: &Pod, container: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.containers.iter().any(|c| c.name == container)
        || spec.init_containers.iter().flatten().any(|c| c.name == container)
        || spec.ephemeral_containers.iter().flatten().any(|c| c.name == container)
}

impl Server {
    /// The pod of that name, if it is the one with `uid` where a request names one.
    pub(super) fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<PodRecord>, Refusal> {
        let record = self.parts.pods.get(namespace, name);
        record
            .filter(|record| uid.is_none_or(|uid| record.uid() == uid))
            .ok_or_else(|| Refusal::not_found("pod does not exist"))
    }

    /// The id of the running container that a session is for.
    pub(super) fn running_container(&self, path: &ContainerPath) -> Result<String, Refusal> {
        let record = self.pod(&path.namespace, &path.pod, path.uid.as_deref())?;
        let container = record.container(&path.container);
        let container =
            container.ok_or_else(|| Refusal::internal(format!("container not found ({:?})", path.container)))?;
        Ok(container.id.clone())
    }

    pub(super) async fn container_logs(&self, path: &ContainerPath, query: &Query) -> Result<Response, Refusal> {
        let options = options(query, jiff::Timestamp::now())?;
        let record = self.pod(&path.namespace, &path.pod, None)?;
        if !has_container(&record.pod, &path.container) {
            let text = format!("container {:?} not found in pod {:?}\n", path.container, path.pod);
            return Err(Refusal::not_found(text));
        }
        let id = container_id(&record.pod, &path.container, options.previous).map_err(Refusal::bad_request)?;
        let retrieve = || Refusal::bad_request(format!("unable to retrieve container logs for {id}"));
        let bare_id = id.split_once("://").map_or(id.as_str(), |(_, bare)| bare);
        let container = record.containers.iter().find(|container| container.id == bare_id).ok_or_else(retrieve)?;
        let log = Log { path: container.log_path.clone(), container_id: container.id.clone() };
        let body = logs::stream(log, options, self.parts.runtime.clone()).await.map_err(|error| {
            tracing::warn!(%error, path = %container.log_path.display(), "log cannot be opened");
            retrieve()
        })?;
        Ok(with_type(StatusCode::OK, "text/plain", body))
    }
}

/// Reads `v1.PodLogOptions` from a query.
fn options(query: &Query, now: jiff::Timestamp) -> Result<LogOptions, Refusal> {
    let invalid = || Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#);
    let number = |key: &str, least: u64| match query.get(key) {
        None | Some("") => Ok(None),
        Some(text) => text.parse::<u64>().ok().filter(|number| *number >= least).map(Some).ok_or_else(invalid),
    };
    let since_time = match query.get("sinceTime") {
        None | Some("") => None,
        Some(text) => Some(text.parse::<jiff::Timestamp>().map_err(|_| invalid())?),
    };
    let since_seconds = number("sinceSeconds", 1)?;
    if since_time.is_some() && since_seconds.is_some() {
        return Err(invalid());
    }
    let since_seconds = since_seconds.and_then(|seconds| i64::try_from(seconds).ok());
    let since = since_seconds
        .map(|seconds| now.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap_or(jiff::Timestamp::MIN))
        .or(since_time);
    let stream = match query.get("stream") {
        None | Some("" | "All") => Wanted::All,
        Some("Stdout") => Wanted::Stdout,
        Some("Stderr") => Wanted::Stderr,
        Some(_) => return Err(invalid()),
    };
    Ok(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        since,
        tail_lines: number("tailLines", 0)?,
        limit_bytes: number("limitBytes", 1)?,
        stream,
    })
}

/// Which incarnation of a container the logs are of, by the pod's status; worded as upstream's `validateContainerLogStatus`.
fn container_id(pod: &Pod, container: &str, previous: bool) -> Result<String, String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let Some(status) = find_status(pod, container) else {
        return Err(format!("container {container:?} in pod {name:?} is not available"));
    };
    let ended_id = |state: &Option<ContainerState>| {
        let ended = state.as_ref().and_then(|state| state.terminated.as_ref());
        ended.map(|ended| ended.container_id.clone().filter(|id| !id.is_empty()))
    };
    let last = ended_id(&status.last_state);
    if previous {
        return last
            .flatten()
            .ok_or_else(|| format!("previous terminated container {container:?} in pod {name:?} not found"));
    }
    if status.state.as_ref().is_some_and(|state| state.running.is_some()) {
        let id = status.container_id.clone().filter(|id| !id.is_empty());
        return id.ok_or_else(|| format!("container {container:?} in pod {name:?} is not available"));
    }
    // Where the next container did not start, the one before is what there is to show.
    match (ended_id(&status.state), last) {
        (Some(Some(id)), _) | (_, Some(Some(id))) => return Ok(id),
        (Some(None), _) | (_, Some(None)) => {
            return Err(format!("container {container:?} in pod {name:?} is terminated"));
        }
        (None, None) => {}
    }
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    let why = match waiting.map(|waiting| waiting.reason.as_deref().unwrap_or_default()) {
        Some("ErrImagePull") => ": image can't be pulled".to_owned(),
        Some("ImagePullBackOff") => ": trying and failing to pull image".to_owned(),
        Some(reason) => format!(": {reason}"),
        None => " - no logs yet".to_owned(),
    };
    Err(format!("container {container:?} in pod {name:?} is waiting to start{why}"))
}

fn find_status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == container)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(state: Value, last: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "app"}]},
            "status": {"containerStatuses": [{
                "name": "app", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "containerID": "containerd://now", "state": state, "lastState": last,
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn which_container_the_logs_are_of() {
        let ended = |id: &str| json!({"terminated": {"exitCode": 1, "containerID": id}});
        let (running, none) = (json!({"running": {}}), json!({}));
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let cases = [
            (running.clone(), none.clone(), false, Ok("containerd://now")),
            (running.clone(), ended("containerd://before"), true, Ok("containerd://before")),
            (running, none.clone(), true, Err("previous terminated container \"app\" in pod \"web\" not found")),
            (ended("containerd://dead"), none.clone(), false, Ok("containerd://dead")),
            (ended(""), ended("containerd://before"), false, Ok("containerd://before")),
            (ended(""), none.clone(), false, Err("container \"app\" in pod \"web\" is terminated")),
            (waiting("CrashLoopBackOff"), ended("containerd://before"), false, Ok("containerd://before")),
            (
                waiting("ContainerCreating"),
                none.clone(),
                false,
                Err("container \"app\" in pod \"web\" is waiting to start: ContainerCreating"),
            ),
            (
                waiting("ErrImagePull"),
                none.clone(),
                false,
                Err("container \"app\" in pod \"web\" is waiting to start: image can't be pulled"),
            ),
            (
                none.clone(),
                none.clone(),
                false,
                Err("container \"app\" in pod \"web\" is waiting to start - no logs yet"),
            ),
        ];
        for (state, last, previous, expected) in cases {
            let found = container_id(&pod(state.clone(), last), "app", previous);
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{state} {previous}");
        }
        let none = json!({});
        assert_eq!(
            container_id(&pod(none.clone(), none), "sidecar", false),
            Err("container \"sidecar\" in pod \"web\" is not available".to_owned())
        );
    }

    #[test]
    fn log_options() {
        let now: jiff::Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let read = |query: &str| options(&Query::parse(query), now);
        let expected = LogOptions {
            follow: true,
            since: Some("2026-01-01T00:00:50Z".parse().unwrap()),
            tail_lines: Some(0),
            limit_bytes: Some(7),
            ..LogOptions::default()
        };
        assert_eq!(read("follow=true&sinceSeconds=10&tailLines=0&limitBytes=7").unwrap(), expected);
        for bad in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceTime=yesterday",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
            "stream=x",
        ] {
            assert_eq!(read(bad).unwrap_err().status, 422, "{bad}");
        }
    }
}
