//! Images for containers: pull policy, credentials, pulls, and the events and reasons that go with them.

use std::time::Duration;

use base64::Engine as _;
use client::EventType;
use cri::messages::image::{AuthConfig, Image};
use cri::messages::sandbox::PodSandboxConfig;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Secret};
use serde_json::Value;
use tokio::time::Instant;

use crate::objects::Holder;
use crate::podutil;
use crate::shared::Shared;

/// Why an image cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageError {
    /// ErrImagePull, ErrImageNeverPull, InvalidImageName, ImageInspectError.
    pub reason: &'static str,
    pub message: String,
    /// A registry was asked, so that the next try must wait.
    pub pulled: bool,
}

/// The container's image on this machine, pulled if its policy says so.
pub async fn ensure(
    shared: &Shared,
    pod: &Pod,
    container: &Container,
    object: &ObjectReference,
    objects: &Holder,
    sandbox: &PodSandboxConfig,
) -> Result<Image, ImageError> {
    let given = container.image.as_deref().unwrap_or_default();
    let warn = |reason: &str, message: &str| shared.recorder.event(object, EventType::Warning, reason, message);
    let Some(image) = with_default_tag(given) else {
        let message = format!(
            "Failed to apply default image tag \"{given}\": couldn't parse image name \"{given}\": invalid reference format"
        );
        warn("InspectFailed", &message);
        return Err(ImageError { reason: "InvalidImageName", message, pulled: false });
    };
    let present = shared.runtime.image_status(&image).await.map_err(|error| {
        let message = format!("Failed to inspect image \"{given}\": {error}");
        warn("InspectFailed", &message);
        ImageError { reason: "ImageInspectError", message, pulled: false }
    })?;
    let policy = container.image_pull_policy.as_deref().unwrap_or(default_policy(&image));
    match (policy, present) {
        ("IfNotPresent" | "Never", Some(image)) => {
            let message =
                format!("Container image \"{given}\" already present on machine and can be accessed by the pod");
            shared.recorder.event(object, EventType::Normal, "Pulled", message);
            Ok(image)
        }
        ("Never", None) => {
            let message = format!("Container image \"{given}\" is not present with pull policy of Never");
            warn("ErrImageNeverPull", &message);
            Err(ImageError { reason: "ErrImageNeverPull", message, pulled: false })
        }
        _ => pull(shared, pod, given, &image, object, objects, sandbox).await,
    }
}

async fn pull(
    shared: &Shared,
    pod: &Pod,
    given: &str,
    image: &str,
    object: &ObjectReference,
    objects: &Holder,
    sandbox: &PodSandboxConfig,
) -> Result<Image, ImageError> {
    let warn = |reason: &str, message: &str| shared.recorder.event(object, EventType::Warning, reason, message);
    let failed = |message: String| {
        warn("Failed", &format!("Failed to pull image \"{given}\": {message}"));
        ImageError { reason: "ErrImagePull", message, pulled: true }
    };
    shared.recorder.event(object, EventType::Normal, "Pulling", format!("Pulling image \"{given}\""));
    let begun = Instant::now();
    let mut candidates = credentials(shared, pod, objects, image).await.into_iter().map(Some).collect::<Vec<_>>();
    if candidates.is_empty() {
        candidates.push(None);
    }
    let mut last = String::new();
    for auth in candidates {
        match shared.runtime.pull_image(image, auth, Some(sandbox.clone())).await {
            Ok(reference) => {
                let found = shared.runtime.image_status(&reference).await;
                let found = found.map_err(|error| failed(error.to_string()))?;
                let found = found.ok_or_else(|| failed(format!("image {reference} vanished after its pull")))?;
                let took = format_duration(begun.elapsed());
                let message = format!(
                    "Successfully pulled image \"{given}\" in {took} ({took} including waiting). Image size: {} bytes.",
                    found.size
                );
                shared.recorder.event(object, EventType::Normal, "Pulled", message);
                return Ok(found);
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(failed(last))
}

/// Go's form of a duration, to milliseconds.
fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0..1000 => format!("{millis}ms"),
        _ => format!("{}.{:03}s", millis / 1000, millis % 1000),
    }
}

/// `:latest` where neither tag nor digest is given; none if it is no image name.
fn with_default_tag(image: &str) -> Option<String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "./:@_-+".contains(c);
    if image.is_empty() || image.starts_with(['/', ':', '@', '.', '-']) || !image.chars().all(valid) {
        return None;
    }
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let (path, tag) = split_tag(name);
    let repository = path.rsplit_once('/').map_or(path, |(_, last)| last);
    let lower_case = path.split_once('/').map_or(path, |(_, rest)| rest).chars().all(|c| !c.is_ascii_uppercase());
    let bad_digest = digest.is_some_and(|digest| !digest.contains(':'));
    if repository.is_empty() || path.ends_with('/') || !lower_case || bad_digest || tag == Some("") {
        return None;
    }
    Some(if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

/// Name and tag; a colon before the last slash belongs to a port.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    match name[slash..].find(':') {
        Some(at) => (&name[..slash + at], Some(&name[slash + at + 1..])),
        None => (name, None),
    }
}

/// Upstream's default, which the API server applies; here for pods that did not pass through it.
fn default_policy(image: &str) -> &'static str {
    if image.ends_with(":latest") { "Always" } else { "IfNotPresent" }
}

/// Credentials of the pod's pull secrets that fit the image, most specific first.
async fn credentials(shared: &Shared, pod: &Pod, objects: &Holder, image: &str) -> Vec<AuthConfig> {
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for reference in podutil::spec(pod).image_pull_secrets.iter().flatten() {
        match objects.secret(&reference.name).await {
            Ok(Some(secret)) => found.extend(of_secret(&secret, image)),
            Ok(None) => {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    reference.name
                );
                let object = podutil::pod_ref(pod);
                shared.recorder.event(&object, EventType::Warning, "FailedToRetrieveImagePullSecret", message);
            }
            Err(error) => tracing::warn!(secret = reference.name, %error, "pull secret not read"),
        }
    }
    found.sort_by_key(|(specific, _)| std::cmp::Reverse(*specific));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// Entries of a docker configuration secret for the image, with the length of what matched.
fn of_secret(secret: &Secret, image: &str) -> Vec<(usize, AuthConfig)> {
    let data = secret.data.as_ref();
    let read = |key: &str| data?.get(key).and_then(|bytes| serde_json::from_slice::<Value>(&bytes.0).ok());
    let auths = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => {
            read(".dockerconfigjson").and_then(|config| config.get("auths").cloned())
        }
        Some("kubernetes.io/dockercfg") => read(".dockercfg"),
        _ => None,
    };
    let Some(Value::Object(auths)) = auths else { return Vec::new() };
    let wanted = full_name(image);
    let matching = auths.iter().filter_map(|(registry, entry)| {
        let prefix = registry.trim_start_matches("https://").trim_start_matches("http://");
        let prefix = prefix.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
        let prefix = if prefix == "index.docker.io" { "docker.io" } else { prefix };
        let fits = matches_registry(prefix, &wanted);
        fits.then(|| (prefix.len(), auth_config(entry)))
    });
    matching.collect()
}

/// The image with its registry, without tag or digest.
fn full_name(image: &str) -> String {
    let name = split_tag(image.split('@').next().unwrap_or_default()).0;
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// A prefix of whole path parts; `*` in the host stands for one label.
fn matches_registry(prefix: &str, image: &str) -> bool {
    let (prefix_host, prefix_path) = prefix.split_once('/').unwrap_or((prefix, ""));
    let (host, path) = image.split_once('/').unwrap_or((image, ""));
    let (ours, theirs): (Vec<_>, Vec<_>) = (prefix_host.split('.').collect(), host.split('.').collect());
    let label = |(pattern, label): (&&str, &&str)| match pattern.split_once('*') {
        Some((head, tail)) => {
            label.len() >= head.len() + tail.len() && label.starts_with(head) && label.ends_with(tail)
        }
        None => pattern == label,
    };
    let host_fits = ours.len() == theirs.len() && ours.iter().zip(&theirs).all(label);
    host_fits && (prefix_path.is_empty() || path == prefix_path || path.starts_with(&format!("{prefix_path}/")))
}

fn auth_config(entry: &Value) -> AuthConfig {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    if let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(text("auth"))
        && let Ok(decoded) = String::from_utf8(decoded)
        && let Some((user, secret)) = decoded.split_once(':')
    {
        (username, password) = (user.to_owned(), secret.to_owned());
    }
    AuthConfig {
        username,
        password,
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
        ..AuthConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_tags() {
        for (image, expected) in [
            ("busybox", Some("busybox:latest")),
            ("busybox:1", Some("busybox:1")),
            ("host:5000/a/b", Some("host:5000/a/b:latest")),
            ("host:5000/a/b:t", Some("host:5000/a/b:t")),
            ("a@sha256:00", Some("a@sha256:00")),
            ("", None),
            ("a b", None),
            ("Upper", None),
            ("a/Upper", None),
            ("a:", None),
            ("/a", None),
        ] {
            assert_eq!(with_default_tag(image).as_deref(), expected, "{image}");
        }
    }

    #[test]
    fn credentials_fit_by_registry_and_path() {
        for (prefix, image, fits) in [
            ("docker.io", "busybox", true),
            ("registry.example/team", "registry.example/team/app:1", true),
            ("registry.example/team", "registry.example/teams/app:1", false),
            ("*.example", "a.example/x", true),
            ("*.example", "a.b.example/x", false),
            ("host:5000", "host:5000/x", true),
        ] {
            assert_eq!(matches_registry(prefix, &full_name(image)), fits, "{prefix} {image}");
        }
        let auth = base64::engine::general_purpose::STANDARD.encode("u:p:q");
        let config = auth_config(&serde_json::json!({ "auth": auth }));
        assert_eq!((config.username.as_str(), config.password.as_str()), ("u", "p:q"));
    }
}
