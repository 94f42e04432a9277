//! What a request asks of the kubelet, and which right it needs. Pure.

use http::{Method, StatusCode};

use super::Refusal;

/// A container by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPath {
    pub namespace: String,
    pub pod: String,
    /// Where the request names it, the pod must be this one.
    pub uid: Option<String>,
    pub container: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Session {
    Exec(ContainerPath),
    Attach(ContainerPath),
    PortForward { namespace: String, pod: String, uid: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Pods,
    RunningPods,
    Configz,
    Logs(ContainerPath),
    /// The path below `/logs/`.
    HostLogs(String),
    Session(Session),
    Run(ContainerPath),
    Summary,
    Metrics,
    ResourceMetrics,
    CadvisorMetrics,
    ProbeMetrics,
}

/// The meaning of method and path.
pub fn route(method: &Method, path: &str) -> Result<Endpoint, Refusal> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let container = |parts: &[&str]| container_path(parts).ok_or_else(|| Refusal::not_found("404 page not found\n"));
    let endpoint = match parts.as_slice() {
        ["pods"] => Endpoint::Pods,
        ["runningpods"] | ["runningpods", ""] => Endpoint::RunningPods,
        ["configz"] => Endpoint::Configz,
        ["stats", "summary"] => Endpoint::Summary,
        ["metrics"] => Endpoint::Metrics,
        ["metrics", "resource"] => Endpoint::ResourceMetrics,
        ["metrics", "cadvisor"] => Endpoint::CadvisorMetrics,
        ["metrics", "probes"] => Endpoint::ProbeMetrics,
        ["logs", rest @ ..] => Endpoint::HostLogs(rest.join("/")),
        ["containerLogs", rest @ ..] if rest.len() == 3 => Endpoint::Logs(container(rest)?),
        ["exec", rest @ ..] => Endpoint::Session(Session::Exec(container(rest)?)),
        ["attach", rest @ ..] => Endpoint::Session(Session::Attach(container(rest)?)),
        ["portForward", namespace, pod] => Endpoint::Session(Session::PortForward {
            namespace: (*namespace).to_owned(),
            pod: (*pod).to_owned(),
            uid: None,
        }),
        ["portForward", namespace, pod, uid] => Endpoint::Session(Session::PortForward {
            namespace: (*namespace).to_owned(),
            pod: (*pod).to_owned(),
            uid: Some((*uid).to_owned()),
        }),
        ["run", rest @ ..] => Endpoint::Run(container(rest)?),
        _ => return Err(Refusal::not_found("404 page not found\n")),
    };
    let allowed: &[Method] = match endpoint {
        // WebSocket clients begin with GET.
        Endpoint::Session(_) => &[Method::GET, Method::POST],
        Endpoint::Run(_) => &[Method::POST],
        _ => &[Method::GET, Method::HEAD],
    };
    if allowed.contains(method) {
        Ok(endpoint)
    } else {
        Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"))
    }
}

fn container_path(parts: &[&str]) -> Option<ContainerPath> {
    let (namespace, pod, uid, container) = match parts {
        [namespace, pod, container] => (namespace, pod, None, container),
        [namespace, pod, uid, container] => (namespace, pod, Some((*uid).to_owned()), container),
        _ => return None,
    };
    if [namespace, pod, container].iter().any(|name| name.is_empty()) {
        return None;
    }
    Some(ContainerPath {
        namespace: (*namespace).to_owned(),
        pod: (*pod).to_owned(),
        uid,
        container: (*container).to_owned(),
    })
}

/// The verb of the access check.
pub fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The subresources of `nodes` of which one must be allowed, finest first (upstream's `NodeRequestAttributesGetter` with
/// fine-grained authorisation).
pub fn subresources(path: &str) -> &'static [&'static str] {
    let below = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if below("/stats") {
        &["stats"]
    } else if below("/metrics") {
        &["metrics"]
    } else if below("/logs") {
        &["log"]
    } else if below("/pods") || below("/runningpods") {
        &["pods", "proxy"]
    } else if below("/configz") {
        &["configz", "proxy"]
    } else {
        &["proxy"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(uid: Option<&str>) -> ContainerPath {
        let uid = uid.map(str::to_owned);
        ContainerPath { namespace: "ns".to_owned(), pod: "web".to_owned(), uid, container: "app".to_owned() }
    }

    #[test]
    fn paths() {
        let get = |path: &str| route(&Method::GET, path).ok();
        assert_eq!(get("/pods"), Some(Endpoint::Pods));
        assert_eq!(get("/runningpods/"), Some(Endpoint::RunningPods));
        assert_eq!(get("/containerLogs/ns/web/app"), Some(Endpoint::Logs(container(None))));
        assert_eq!(get("/containerLogs/ns/web"), None);
        assert_eq!(get("/containerLogs/ns//app"), None);
        assert_eq!(get("/exec/ns/web/u1/app"), Some(Endpoint::Session(Session::Exec(container(Some("u1"))))));
        assert_eq!(get("/logs/"), Some(Endpoint::HostLogs(String::new())));
        assert_eq!(get("/logs/a/b"), Some(Endpoint::HostLogs("a/b".to_owned())));
        assert_eq!(get("/run/ns/web/app"), None);
        assert_eq!(route(&Method::POST, "/run/ns/web/app").ok(), Some(Endpoint::Run(container(None))));
        assert_eq!(route(&Method::DELETE, "/pods").unwrap_err().status, 405);
        assert_eq!(route(&Method::GET, "/").unwrap_err().status, 404);
    }

    #[test]
    fn rights() {
        for (path, expected) in [
            ("/stats/summary", "stats"),
            ("/metrics", "metrics"),
            ("/metrics/cadvisor", "metrics"),
            ("/logs/", "log"),
            ("/pods", "pods"),
            ("/podsy", "proxy"),
            ("/exec/ns/web/app", "proxy"),
            ("/containerLogs/ns/web/app", "proxy"),
        ] {
            assert_eq!(subresources(path)[0], expected, "{path}");
        }
    }
}
