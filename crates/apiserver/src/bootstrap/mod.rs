//! The objects that a cluster has from its first second: namespaces, default roles and bindings, priority classes, flow control,
//! the service network. Pure: what they are, and how an existing one is brought up to date. Others write them.

pub(crate) mod flow;
mod rbac;
mod reconcile;

use apimachinery::Value;
use serde_json::{Map, json};

pub use reconcile::{Step, is_left_over, reconcile};

use crate::authz::rules::{Rule, rules_of};

/// RBAC objects are brought up to date at every start unless this annotation is `false`.
pub(crate) const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What differs from cluster to cluster.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `10.43.0.0/16`; two of different families on a dual-stack cluster.
    pub service_cidrs: Vec<String>,
    /// PEM of the CA that signs client certificates.
    pub client_ca: String,
    /// PEM of the CA whose certificates may set request headers (front proxies); empty if there is none.
    pub request_header_ca: String,
}

/// Everything that has to exist, in the order in which to create it.
pub fn objects(settings: &Settings) -> Vec<Value> {
    let mut out: Vec<Value> = ["kube-system", "kube-public", "kube-node-lease", "default"].map(namespace).into();
    out.extend(rbac::objects());
    out.extend(priority_classes());
    out.extend(flow::objects());
    out.push(service_cidr(&settings.service_cidrs));
    out.push(authentication_config(settings));
    out
}

/// The rules of the default role `system:node`, which the Node authoriser grants.
pub(crate) fn node_rules() -> Vec<Rule> {
    let role =
        rbac::objects().into_iter().find(|o| o["kind"] == "ClusterRole" && o["metadata"]["name"] == "system:node");
    role.map(|role| rules_of(&role)).unwrap_or_default()
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]},
    })
}

fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "preemptionPolicy": "PreemptLowerPriority", "description": description,
        })
    };
    [
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

fn service_cidr(cidrs: &[String]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": cidrs},
    })
}

/// What aggregated API servers need to know about this one's clients.
fn authentication_config(settings: &Settings) -> Value {
    let mut data = Map::new();
    if !settings.client_ca.is_empty() {
        data.insert("client-ca-file".to_owned(), json!(settings.client_ca));
    }
    if !settings.request_header_ca.is_empty() {
        data.insert("requestheader-client-ca-file".to_owned(), json!(settings.request_header_ca));
        for (key, value) in [
            ("requestheader-allowed-names", r#"["system:auth-proxy"]"#),
            ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
            ("requestheader-uid-headers", r#"["X-Remote-Uid"]"#),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ] {
            data.insert(key.to_owned(), json!(value));
        }
    }
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::resource::builtin;
    use apimachinery::schema::decode::Duplicates;
    use apimachinery::schema::{FieldValidation, default, validate};

    /// A start with nothing to do writes nothing: not even where the schema has added defaults.
    #[test]
    fn what_was_created_is_valid_and_stays_as_it_is() {
        let settings = Settings {
            service_cidrs: vec!["10.43.0.0/16".to_owned()],
            client_ca: "pem".to_owned(),
            request_header_ca: "pem".to_owned(),
        };
        for wanted in objects(&settings) {
            let text = |field: &str| wanted[field].as_str().unwrap_or_default();
            let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
            let row = builtin().by_kind(group, version, text("kind")).unwrap_or_else(|| panic!("no row for {wanted}"));
            let mut stored = wanted.clone();
            let warnings = row
                .check(&mut stored, &Duplicates::default(), FieldValidation::Strict)
                .unwrap_or_else(|e| panic!("{e}: {wanted}"));
            assert_eq!(warnings, Vec::<String>::new(), "{wanted}");
            default(&row.schema, row.root, &mut stored);
            assert_eq!(validate(&row.schema, row.root, &stored), [], "{wanted}");
            assert_eq!(reconcile(&stored, &wanted), None, "{stored}");
        }
    }
}
