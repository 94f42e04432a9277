//! Where the streaming subresources of a pod lead: from the pod and the request's options to a path of its kubelet.
//!
//! Pure. Wording and rules are those of upstream's `registry/core/pod` strategy and `ValidatePodLogOptions`.

use apimachinery::Value;
use apimachinery::field::{self, Path};
use apimachinery::status::{GroupResource, Result, StatusError};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use streaming::remotecommand::Options;

use crate::http::query::Query;

/// What Go's `url.QueryEscape` leaves alone.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Logs (`PodLogOptions`). `None` while the pod has no node: the answer is empty then.
pub fn logs(pod: &Value, given: &Query) -> Result<Option<String>> {
    let query = log_query(text(pod, "/metadata/name"), given)?;
    let container = container(pod, given.get("container"))?;
    if text(pod, "/spec/nodeName").is_empty() {
        return Ok(None);
    }
    Ok(Some(path("containerLogs", pod, Some(&container), &query)))
}

/// A remote command (`PodExecOptions`, `PodAttachOptions`): the kubelet's path, and the streams that it will have.
/// `subresource` is `exec` or `attach`.
pub fn remote_command(subresource: &str, pod: &Value, given: &Query) -> Result<(String, Options)> {
    let container = container(pod, given.get("container"))?;
    has_host(pod)?;
    let tty = given.flag("tty");
    let options = Options {
        stdin: given.flag("stdin"),
        stdout: given.flag("stdout"),
        // A terminal has one output.
        stderr: given.flag("stderr") && !tty,
        tty,
    };
    let flags = [("input", options.stdin), ("output", options.stdout), ("error", options.stderr), ("tty", options.tty)];
    let mut query: Vec<(&str, &str)> = flags.iter().filter(|(_, set)| *set).map(|(key, _)| (*key, "1")).collect();
    if subresource == "exec" {
        query.extend(given.all("command").map(|word| ("command", word)));
    }
    Ok((path(subresource, pod, Some(&container), &query), options))
}

/// Port forwarding (`PodPortForwardOptions`).
pub fn port_forward(pod: &Value, given: &Query) -> Result<String> {
    has_host(pod)?;
    let query: Vec<(&str, &str)> = given.all("ports").map(|port| ("port", port)).collect();
    Ok(path("portForward", pod, None, &query))
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn has_host(pod: &Value) -> Result<()> {
    if text(pod, "/spec/nodeName").is_empty() {
        let name = text(pod, "/metadata/name");
        return Err(StatusError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    Ok(())
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    let containers = pod["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
    containers.iter().filter_map(|container| container["name"].as_str()).collect()
}

/// The container that the request means: the one it names, or the pod's only one.
fn container(pod: &Value, requested: Option<&str>) -> Result<String> {
    let name = text(pod, "/metadata/name");
    let (main, init) = (names(pod, "containers"), names(pod, "initContainers"));
    match requested.filter(|container| !container.is_empty()) {
        Some(container) => {
            if main.contains(&container)
                || init.contains(&container)
                || names(pod, "ephemeralContainers").contains(&container)
            {
                return Ok(container.to_owned());
            }
            Err(StatusError::bad_request(format!("container {container} is not valid for pod {name}")))
        }
        None => match main.as_slice() {
            [only] => Ok((*only).to_owned()),
            [] => Err(StatusError::bad_request(format!("a container name must be specified for pod {name}"))),
            several => {
                let several = several.join(" ");
                let mut message =
                    format!("a container name must be specified for pod {name}, choose one of: [{several}]");
                if !init.is_empty() {
                    message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(StatusError::bad_request(message))
            }
        },
    }
}

fn path(endpoint: &str, pod: &Value, container: Option<&str>, query: &[(&str, &str)]) -> String {
    let mut path = format!("/{endpoint}/{}/{}", text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
    if let Some(container) = container {
        path.push('/');
        path.push_str(container);
    }
    let mut separator = '?';
    for (key, value) in query {
        path.push(separator);
        path.push_str(&format!("{key}={}", utf8_percent_encode(value, QUERY)));
        separator = '&';
    }
    path
}

/// The parameters of a log request that are passed on, once they are valid.
fn log_query<'a>(pod: &str, given: &'a Query) -> Result<Vec<(&'a str, &'a str)>> {
    let mut query: Vec<(&str, &str)> = ["follow", "previous", "timestamps"]
        .into_iter()
        .filter(|key| given.flag(key))
        .map(|key| (key, "true"))
        .collect();
    let mut errors = Vec::new();
    let limits = [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ];
    for (key, least, rule) in limits {
        let (Some(number), Some(value)) = (given.number(key)?, given.get(key)) else { continue };
        if number < least {
            errors.push(field::Error::invalid(&Path::new(key), &json!(number), rule));
        }
        query.push((key, value));
    }
    if let Some(since) = given.get("sinceTime").filter(|value| !value.is_empty()) {
        since.parse::<jiff::Timestamp>().map_err(|error| StatusError::bad_request(error.to_string()))?;
        if query.iter().any(|(key, _)| *key == "sinceSeconds") {
            let rule = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(field::Error::forbidden(&Path::root(), rule));
        }
        query.push(("sinceTime", since));
    }
    if let Some(stream) = given.get("stream").filter(|value| !value.is_empty()) {
        if !matches!(stream, "All" | "Stdout" | "Stderr") {
            let known = ["All", "Stderr", "Stdout"];
            errors.push(field::Error::not_supported(&Path::new("stream"), &json!(stream), &known));
        } else if stream != "All" && query.iter().any(|(key, _)| *key == "tailLines") {
            let rule = "`tailLines` and specific `stream` are mutually exclusive for now";
            errors.push(field::Error::forbidden(&Path::root(), rule));
        }
        query.push(("stream", stream));
    }
    if errors.is_empty() {
        Ok(query)
    } else {
        Err(StatusError::invalid(&GroupResource::new("", "PodLogOptions"), pod, &errors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: &[&str]) -> Value {
        let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name})).collect();
        json!({
            "metadata": {"name": "web", "namespace": "ns"},
            "spec": {"nodeName": "n1", "containers": containers, "initContainers": [{"name": "setup"}]},
        })
    }

    #[test]
    fn paths() {
        let pod = pod(&["app"]);
        let (path, options) = remote_command(
            "exec",
            &pod,
            &Query::parse("stdin=true&stdout=1&stderr=true&tty=true&command=sh&command=-c+x%26y"),
        )
        .unwrap();
        assert_eq!(path, "/exec/ns/web/app?input=1&output=1&tty=1&command=sh&command=-c%20x%26y");
        assert_eq!(options, Options { stdin: true, stdout: true, stderr: false, tty: true });
        let (path, _) = remote_command("attach", &pod, &Query::parse("container=setup&stdout=true")).unwrap();
        assert_eq!(path, "/attach/ns/web/setup?output=1");
        assert_eq!(port_forward(&pod, &Query::default()).unwrap(), "/portForward/ns/web");
        let query = Query::parse("follow=true&previous=false&tailLines=0&sinceTime=2026-01-02T03:04:05Z");
        let path = "/containerLogs/ns/web/app?follow=true&tailLines=0&sinceTime=2026-01-02T03%3A04%3A05Z";
        assert_eq!(logs(&pod, &query).unwrap().as_deref(), Some(path));
    }

    #[test]
    fn refusals() {
        let message = |pod: &Value, query| logs(pod, &Query::parse(query)).unwrap_err().message;
        let two = pod(&["a", "b"]);
        assert_eq!(
            message(&two, ""),
            "a container name must be specified for pod web, choose one of: [a b] or one of the init containers: [setup]"
        );
        assert_eq!(message(&two, "container=c"), "container c is not valid for pod web");
        assert_eq!(
            message(&pod(&["a"]), "tailLines=-1&limitBytes=0"),
            "PodLogOptions \"web\" is invalid: [tailLines: Invalid value: -1: must be greater than or equal to 0, \
             limitBytes: Invalid value: 0: must be greater than 0]"
        );
        assert!(message(&pod(&["a"]), "sinceSeconds=x").contains("strconv.ParseInt: parsing \"x\": invalid syntax"));
        let mut homeless = pod(&["a"]);
        homeless["spec"]["nodeName"] = json!("");
        assert_eq!(logs(&homeless, &Query::default()).unwrap(), None);
        assert_eq!(
            port_forward(&homeless, &Query::default()).unwrap_err().message,
            "pod web does not have a host assigned"
        );
    }
}
