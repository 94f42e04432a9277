//! Every pod has a service account, and, unless it declines, that account's token mounted where clients expect it.

use apimachinery::resource::ResourceRow;
use apimachinery::status::Result;
use apimachinery::{Value, meta, names};
use serde_json::json;

use super::pod_spec::{is_mirror, items, items_mut, secret_references, spec_mut, token_projections};
use super::{Operation, Plugin, Request, mentions};
use crate::object::Entry;
use crate::view::{View, key};

const DEFAULT: &str = "default";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An hour, and a few seconds by which tokens of this volume are told from others.
const TOKEN_SECONDS: i64 = 3607;
/// Accounts with this annotation `true` restrict their pods to the secrets that the account lists.
const ENFORCE_ANNOTATION: &str = "kubernetes.io/enforce-mountable-secrets";

pub struct ServiceAccount;

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        if request.operation != Operation::Create || !request.is("", "pods", "") || is_mirror(request.object) {
            return Ok(());
        }
        let spec = spec_mut(request.object);
        if spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default().is_empty() {
            let deprecated = spec.get("serviceAccount").and_then(Value::as_str).filter(|name| !name.is_empty());
            let name = deprecated.unwrap_or(DEFAULT).to_owned();
            spec.insert("serviceAccountName".to_owned(), json!(name));
        }
        let account = account(request)?.value.value();
        if wants_token(request.object, &account) {
            mount_token(request.object, request.seed);
        }
        if items(request.object, "imagePullSecrets").next().is_none()
            && let Some(secrets) =
                account.get("imagePullSecrets").filter(|list| list.as_array().is_some_and(|l| !l.is_empty()))
        {
            spec_mut(request.object).insert("imagePullSecrets".to_owned(), secrets.clone());
        }
        Ok(())
    }

    fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        let created = request.operation == Operation::Create && request.is("", "pods", "");
        let extended = request.operation == Operation::Update && request.is("", "pods", "ephemeralcontainers");
        if created && is_mirror(request.object) {
            return check_mirror(request);
        }
        if created || extended {
            return check_secrets(request);
        }
        Ok(())
    }
}

/// The key of the default account that a new pod in a new namespace is about to be given, if it is not there yet.
pub fn awaited(view: &View, row: &ResourceRow, namespace: &str, object: &Value) -> Option<String> {
    let name = meta::str_at(object, &["spec", "serviceAccountName"]);
    let of_default =
        &*row.plural == "pods" && row.group.is_empty() && matches!(name, "" | DEFAULT) && !is_mirror(object);
    if !of_default || view.get("serviceaccounts", namespace, DEFAULT).is_some() {
        return None;
    }
    let namespace_lives =
        view.get("namespaces", "", namespace).is_some_and(|n| n.value.meta().deletion_timestamp.is_none());
    namespace_lives.then(|| key("serviceaccounts", namespace, DEFAULT))
}

fn account(request: &Request<'_>) -> Result<Entry> {
    let name = meta::str_at(request.object, &["spec", "serviceAccountName"]);
    let namespace = request.namespace;
    request.view.get("serviceaccounts", namespace, name).ok_or_else(|| {
        request.forbidden(&format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        ))
    })
}

/// The pod decides, else its account, else yes.
fn wants_token(pod: &Value, account: &Value) -> bool {
    let of_pod = meta::at(pod, &["spec", "automountServiceAccountToken"]).and_then(Value::as_bool);
    of_pod.or_else(|| account.get("automountServiceAccountToken").and_then(Value::as_bool)).unwrap_or(true)
}

fn mount_token(pod: &mut Value, seed: u64) {
    let volumes: Vec<&str> = items(pod, "volumes").map(|volume| meta::str_at(volume, &["name"])).collect();
    let existing = volumes.iter().find(|name| name.starts_with(VOLUME_PREFIX)).map(|name| (*name).to_owned());
    let volume = existing.clone().unwrap_or_else(|| {
        let mut candidates = (0..).map(|n| names::generate_name(VOLUME_PREFIX, seed.wrapping_add(n)));
        candidates.find(|name| !volumes.contains(&name.as_str())).expect("a pod has fewer volumes than there are names")
    });
    let mut used = false;
    for list in ["initContainers", "containers"] {
        if items(pod, list).next().is_none() {
            continue;
        }
        for container in items_mut(pod, list) {
            used |= mount_into(container, &volume);
        }
    }
    if used && existing.is_none() {
        items_mut(pod, "volumes").push(token_volume(&volume));
    }
}

/// Mounts the volume unless something is mounted in its place already.
fn mount_into(container: &mut Value, volume: &str) -> bool {
    let mounts = container.get("volumeMounts").and_then(Value::as_array);
    if mounts.into_iter().flatten().any(|mount| meta::str_at(mount, &["mountPath"]) == MOUNT_PATH) {
        return false;
    }
    let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
    match container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
        Some(mounts) => mounts.push(mount),
        None => container["volumeMounts"] = json!([mount]),
    }
    true
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}

/// A mirror pod comes from its node, which must not reach for what the API would have to hand out.
fn check_mirror(request: &Request<'_>) -> Result<()> {
    let pod = &*request.object;
    if !meta::str_at(pod, &["spec", "serviceAccountName"]).is_empty() {
        return Err(request.forbidden("a mirror pod may not reference service accounts"));
    }
    if !secret_references(pod).is_empty() {
        return Err(request.forbidden("a mirror pod may not reference secrets"));
    }
    if token_projections(pod).next().is_some() {
        return Err(request.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
    }
    Ok(())
}

fn check_secrets(request: &Request<'_>) -> Result<()> {
    let account = account(request)?;
    if !mentions(&account, ENFORCE_ANNOTATION) {
        return Ok(());
    }
    let account = account.value.value();
    if meta::annotation(&account, ENFORCE_ANNOTATION) != Some("true") {
        return Ok(());
    }
    let listed = |list: &str, wanted: &str| {
        account.get(list).and_then(Value::as_array).into_iter().flatten().any(|s| meta::str_at(s, &["name"]) == wanted)
    };
    let refuse = |what: &str| {
        let name = meta::name(&account);
        Err(request
            .forbidden(&format!("{what} is not allowed because service account {name} does not reference that secret")))
    };
    for (what, secret) in secret_references(request.object) {
        if !listed("secrets", secret) {
            return refuse(&what);
        }
    }
    for secret in items(request.object, "imagePullSecrets").map(|secret| meta::str_at(secret, &["name"])) {
        if !listed("imagePullSecrets", secret) && !listed("secrets", secret) {
            return refuse(&format!("imagePullSecret {secret:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec})
    }

    fn cluster(account: Value) -> Cluster {
        let cluster = Cluster::new();
        let mut account = account;
        account["metadata"]["name"] = json!("default");
        account["metadata"]["namespace"] = json!("ns");
        cluster.put("serviceaccounts", account);
        cluster
    }

    #[test]
    fn the_token_is_mounted_into_every_container() {
        let cluster = cluster(json!({"imagePullSecrets": [{"name": "pull"}]}));
        let other = json!([{"name": "v", "mountPath": MOUNT_PATH}]);
        let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b", "volumeMounts": other}]});
        let mut case = Case::create("", "pods", pod(spec));
        case.admit(&cluster, &ServiceAccount).unwrap();
        let spec = &case.object["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
        let name = spec["volumes"][0]["name"].as_str().unwrap();
        assert!(name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5, "{name}");
        assert_eq!(spec["volumes"][0], token_volume(name));
        let mount = json!([{"name": name, "readOnly": true, "mountPath": MOUNT_PATH}]);
        assert_eq!(spec["containers"][0]["volumeMounts"], mount);
        assert_eq!(spec["initContainers"][0]["volumeMounts"], mount);
        assert_eq!(spec["containers"][1]["volumeMounts"], other);
        let once = case.object.clone();
        case.admit(&cluster, &ServiceAccount).unwrap();
        assert_eq!(case.object, once, "admitting again changes nothing");
        case.validate(&cluster, &ServiceAccount).unwrap();
    }

    #[test]
    fn a_pod_or_its_account_may_decline() {
        for (account, of_pod, mounted) in [
            (json!({}), json!(false), false),
            (json!({"automountServiceAccountToken": false}), Value::Null, false),
            (json!({"automountServiceAccountToken": false}), json!(true), true),
        ] {
            let spec = json!({"containers": [{"name": "a"}], "automountServiceAccountToken": of_pod});
            let mut case = Case::create("", "pods", pod(spec));
            case.admit(&cluster(account), &ServiceAccount).unwrap();
            assert_eq!(case.object["spec"].get("volumes").is_some(), mounted);
        }
    }

    #[test]
    fn an_account_must_exist_and_mirrors_have_none() {
        let cluster = cluster(json!({}));
        let mut case = Case::create("", "pods", pod(json!({"serviceAccountName": "gone"})));
        assert_eq!(
            case.admit(&cluster, &ServiceAccount).unwrap_err().message,
            r#"pods "p" is forbidden: error looking up service account ns/gone: serviceaccount "gone" not found"#
        );
        let mut mirror = pod(json!({"containers": [{"name": "a"}]}));
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
        let mut case = Case::create("", "pods", mirror);
        case.admit(&cluster, &ServiceAccount).unwrap();
        assert_eq!(case.object["spec"].get("serviceAccountName"), None);
        case.validate(&cluster, &ServiceAccount).unwrap();
        case.object["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]);
        let error = case.validate(&cluster, &ServiceAccount).unwrap_err();
        assert!(error.message.ends_with("a mirror pod may not reference secrets"));
    }

    #[test]
    fn an_account_may_restrict_secrets() {
        let cluster =
            cluster(json!({"metadata": {"annotations": {ENFORCE_ANNOTATION: "true"}}, "secrets": [{"name": "mine"}]}));
        let spec = |secret: &str| json!({"serviceAccountName": "default", "volumes": [{"name": "v", "secret": {"secretName": secret}}]});
        assert!(Case::create("", "pods", pod(spec("mine"))).validate(&cluster, &ServiceAccount).is_ok());
        let error = Case::create("", "pods", pod(spec("other"))).validate(&cluster, &ServiceAccount).unwrap_err();
        assert_eq!(
            error.message,
            r#"pods "p" is forbidden: volume with secret.secretName="other" is not allowed because service account default does not reference that secret"#
        );
    }

    #[test]
    fn a_new_namespaces_account_is_worth_waiting_for() {
        let cluster = Cluster::new();
        let row = apimachinery::resource::builtin().preferred("", "pods").unwrap();
        let awaited = |spec: Value| awaited(&cluster.view, row, "ns", &pod(spec));
        assert_eq!(awaited(json!({})), None, "the namespace is missing");
        cluster.put("namespaces", json!({"metadata": {"name": "ns"}}));
        assert_eq!(awaited(json!({})).as_deref(), Some("/registry/serviceaccounts/ns/default"));
        assert_eq!(awaited(json!({"serviceAccountName": "other"})), None);
        cluster.put("serviceaccounts", json!({"metadata": {"name": "default", "namespace": "ns"}}));
        assert_eq!(awaited(json!({})), None);
    }
}
