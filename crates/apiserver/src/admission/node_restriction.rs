//! What nodes may write: their own Node, lease and CSI objects, the status of their own pods, mirrors of pods that they run by
//! themselves, and tokens for the accounts of their pods. Narrows what the Node authoriser allows by what the request contains.

use std::collections::BTreeSet;

use apimachinery::status::Result;
use apimachinery::{Value, meta};

use super::pod_spec::{MIRROR_ANNOTATION, is_mirror, items, secret_references, token_projections};
use super::{Operation, Plugin, Request};
use crate::authz::node_name;

const NODES_GROUP: &str = "system:nodes";
const LEASES_NAMESPACE: &str = "kube-node-lease";
/// Labels under this name are for isolating nodes from each other: no node sets them.
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// Labels of Kubernetes' own domains that a node does set on itself.
const KUBELET_LABELS: [&str; 13] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const KUBELET_LABEL_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

pub struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update | Operation::Delete)
    }

    /// Runs after all mutation: what counts is what would be stored.
    fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        if !request.user.in_group(NODES_GROUP) {
            return Ok(());
        }
        let Some(node) = node_name(request.user) else {
            return Err(request.forbidden(&format!("could not determine node from user {:?}", request.user.name)));
        };
        let verdict = match (&*request.row.group, &*request.row.plural, request.subresource) {
            ("", "pods", "") => pod(request, node),
            ("", "pods", "status") => pod_status(request, node),
            ("", "pods", "eviction") => eviction(request, node),
            ("", "pods", other) => {
                Err(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
            }
            ("", "nodes", _) => node_object(request, node),
            ("", "persistentvolumeclaims", "status") => claim_status(request, node),
            ("", "persistentvolumeclaims", _) => Err("may only update PVC status".to_owned()),
            ("", "serviceaccounts", "token") => token(request, node),
            ("coordination.k8s.io", "leases", _) => lease(request, node),
            ("storage.k8s.io", "csinodes", _) => {
                own_name(request, node, "can only access CSINode with the same name as the requesting node")
            }
            ("resource.k8s.io", "resourceslices", _) => resource_slice(request, node),
            _ => Ok(()),
        };
        verdict.map_err(|why| request.forbidden(&why))
    }
}

/// The reason of a refusal.
type Verdict = std::result::Result<(), String>;

fn refuse(condition: bool, why: impl FnOnce() -> String) -> Verdict {
    if condition { Err(why()) } else { Ok(()) }
}

fn node_of(pod: &Value) -> &str {
    meta::str_at(pod, &["spec", "nodeName"])
}

fn pod(request: &Request<'_>, node: &str) -> Verdict {
    match request.operation {
        Operation::Create => mirror_pod(request, node),
        Operation::Delete => refuse(request.old.is_some_and(|pod| node_of(pod) != node), || {
            format!("node {node:?} can only delete pods with spec.nodeName set to itself")
        }),
        operation => Err(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            operation.as_str()
        )),
    }
}

fn mirror_pod(request: &Request<'_>, node: &str) -> Verdict {
    let pod = &*request.object;
    refuse(!is_mirror(pod), || {
        format!("pod does not have {MIRROR_ANNOTATION:?} annotation, node {node:?} can only create mirror pods")
    })?;
    refuse(node_of(pod) != node, || format!("node {node:?} can only create pods with spec.nodeName set to itself"))?;
    owned_by_node(request, node)?;
    let account = meta::str_at(pod, &["spec", "serviceAccountName"]);
    refuse(!account.is_empty(), || format!("node {node:?} can not create pods that reference a service account"))?;
    refuse(!secret_references(pod).is_empty(), || format!("node {node:?} can not create pods that reference secrets"))?;
    let configs = pod_uses_config_maps(pod);
    refuse(configs, || format!("node {node:?} can not create pods that reference configmaps"))?;
    let claims = items(pod, "volumes").any(|v| v.get("persistentVolumeClaim").is_some_and(|c| !c.is_null()));
    refuse(claims, || format!("node {node:?} can not create pods that reference persistentvolumeclaims"))?;
    refuse(items(pod, "resourceClaims").next().is_some(), || {
        format!("node {node:?} can not create pods that reference resourceclaims")
    })
}

fn pod_uses_config_maps(pod: &Value) -> bool {
    let given = |value: &Value, path: &[&str]| meta::at(value, path).is_some_and(|v| !v.is_null());
    let list =
        |value: &Value, path: &[&str]| meta::at(value, path).and_then(Value::as_array).cloned().unwrap_or_default();
    items(pod, "volumes").any(|volume| {
        given(volume, &["configMap"])
            || list(volume, &["projected", "sources"]).iter().any(|source| given(source, &["configMap"]))
    }) || super::pod_spec::containers(pod).any(|container| {
        list(container, &["env"]).iter().any(|env| given(env, &["valueFrom", "configMapKeyRef"]))
            || list(container, &["envFrom"]).iter().any(|from| given(from, &["configMapRef"]))
    })
}

/// A mirror pod belongs to its node and to nothing else.
fn owned_by_node(request: &Request<'_>, node: &str) -> Verdict {
    let owners = meta::at(request.object, &["metadata", "ownerReferences"]).and_then(Value::as_array);
    let owner = match owners.map(Vec::as_slice) {
        None | Some([]) => {
            return Err(format!("node {node:?} can only create pods with an owner reference set to itself"));
        }
        Some([owner]) => owner,
        Some(_) => {
            return Err(format!("node {node:?} can only create pods with a single owner reference set to itself"));
        }
    };
    let text = |field: &str| meta::str_at(owner, &[field]);
    let is_node = text("apiVersion") == "v1" && text("kind") == "Node" && text("name") == node;
    refuse(!is_node, || format!("node {node:?} can only create pods with an owner reference set to itself"))?;
    refuse(owner.get("controller") != Some(&Value::Bool(true)), || {
        format!("node {node:?} can only create pods with a controller owner reference set to itself")
    })?;
    refuse(owner.get("blockOwnerDeletion") == Some(&Value::Bool(true)), || {
        format!("node {node:?} must not set blockOwnerDeletion on an owner reference")
    })?;
    let current = request.view.get("minions", "", node);
    let same = current.is_some_and(|entry| *entry.value.meta().uid == *text("uid"));
    refuse(!same, || {
        format!(
            "node {node} UID mismatch: expected the UID in the owner reference ({}) to be that of the node",
            text("uid")
        )
    })
}

fn pod_status(request: &Request<'_>, node: &str) -> Verdict {
    let Some(old) = request.old.filter(|_| request.operation == Operation::Update) else {
        return Err(format!("unexpected operation {:?}", request.operation.as_str()));
    };
    refuse(node_of(old) != node, || {
        format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")
    })?;
    refuse(field(old, "metadata", "labels") != field(request.object, "metadata", "labels"), || {
        format!("node {node:?} cannot update labels through pod status")
    })?;
    refuse(
        field(old, "status", "resourceClaimStatuses") != field(request.object, "status", "resourceClaimStatuses"),
        || format!("node {node:?} cannot update resource claim statuses"),
    )
}

/// `object.<part>.<name>`; null, empty and absent are the same.
fn field<'a>(object: &'a Value, part: &str, name: &str) -> Option<&'a Value> {
    let empty = |value: &Value| {
        value.is_null()
            || value.as_object().is_some_and(|m| m.is_empty())
            || value.as_array().is_some_and(Vec::is_empty)
    };
    meta::at(object, &[part, name]).filter(|value| !empty(value))
}

fn eviction(request: &Request<'_>, node: &str) -> Verdict {
    refuse(request.operation != Operation::Create, || {
        format!("unexpected operation {}, node {node:?} can only create evictions", request.operation.as_str())
    })?;
    // The old object of an eviction is the pod.
    refuse(request.old.is_none_or(|pod| node_of(pod) != node), || {
        format!("node {node} can only evict pods with spec.nodeName set to itself")
    })
}

fn node_object(request: &Request<'_>, node: &str) -> Verdict {
    let asked = if request.name.is_empty() { meta::name(request.object) } else { request.name };
    if request.operation == Operation::Create {
        forbidden_labels(request.object, None, node)?;
    }
    refuse(asked != node, || format!("node {node:?} is not allowed to modify node {asked:?}"))?;
    let Some(old) = request.old.filter(|_| request.operation == Operation::Update) else { return Ok(()) };
    refuse(field(old, "metadata", "ownerReferences") != field(request.object, "metadata", "ownerReferences"), || {
        format!("node {node:?} is not allowed to modify ownerReferences")
    })?;
    // A node may write a taint when it registers itself, never afterwards.
    refuse(field(old, "spec", "taints") != field(request.object, "spec", "taints"), || {
        format!("node {node:?} is not allowed to modify taints")
    })?;
    forbidden_labels(request.object, Some(old), node)
}

fn forbidden_labels(object: &Value, old: Option<&Value>, node: &str) -> Verdict {
    let labels =
        |object: &'_ Value| field(object, "metadata", "labels").and_then(Value::as_object).cloned().unwrap_or_default();
    let (new, old) = (labels(object), old.map(labels).unwrap_or_default());
    let changed = new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key));
    let forbidden: BTreeSet<&str> = changed.map(String::as_str).filter(|key| !may_label(key)).collect();
    refuse(!forbidden.is_empty(), || {
        let list = forbidden.into_iter().collect::<Vec<_>>().join(", ");
        format!("is not allowed to modify labels: {list}")
    })
    .map_err(|why| format!("node {node:?} {why}"))
}

fn may_label(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|head| head.ends_with('.'));
    if within(RESTRICTED) {
        return false;
    }
    let of_kubernetes = within("kubernetes.io") || within("k8s.io");
    !of_kubernetes || KUBELET_LABELS.contains(&label) || KUBELET_LABEL_DOMAINS.iter().any(|parent| within(parent))
}

fn claim_status(request: &Request<'_>, node: &str) -> Verdict {
    let Some(old) = request.old.filter(|_| request.operation == Operation::Update) else {
        return Err(format!("unexpected operation {:?}", request.operation.as_str()));
    };
    let stripped = |claim: &Value| {
        let mut claim = claim.clone();
        if let Some(map) = claim.as_object_mut() {
            map.remove("status");
        }
        meta::remove(&mut claim, "managedFields");
        meta::remove(&mut claim, "resourceVersion");
        claim
    };
    refuse(stripped(old) != stripped(request.object), || {
        format!("node {node:?} is not allowed to update fields other than status.quantity and status.conditions")
    })
}

fn token(request: &Request<'_>, node: &str) -> Verdict {
    let reference = meta::at(request.object, &["spec", "boundObjectRef"]).filter(|r| !r.is_null());
    let text = |field: &str| reference.map_or("", |reference| meta::str_at(reference, &[field]));
    refuse(text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty(), || {
        "node requested token not bound to a pod".to_owned()
    })?;
    refuse(text("uid").is_empty(), || "node requested token with a pod binding without a uid".to_owned())?;
    let Some(entry) = request.view.get("pods", request.namespace, text("name")) else {
        return Err(format!("pods {:?} not found", text("name")));
    };
    let pod = entry.value.value();
    refuse(meta::uid(&pod) != text("uid"), || {
        format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text("uid")
        )
    })?;
    refuse(node_of(&pod) != node, || "node requested token bound to a pod scheduled on a different node".to_owned())?;
    for audience in meta::strings(meta::at(request.object, &["spec", "audiences"])) {
        let found = may_have_audience(request, &pod, audience);
        refuse(!found, || format!("audience {audience:?} not found in pod spec volume"))?;
    }
    Ok(())
}

/// Tokens are for the audiences that the pod's volumes name, or that a CSI driver of the cluster asks for.
fn may_have_audience(request: &Request<'_>, pod: &Value, audience: &str) -> bool {
    if audience.is_empty() || token_projections(pod).any(|token| meta::str_at(token, &["audience"]) == audience) {
        return true;
    }
    let uses_volumes = items(pod, "volumes")
        .any(|volume| ["csi", "persistentVolumeClaim", "ephemeral"].iter().any(|kind| volume.get(*kind).is_some()));
    uses_volumes
        && request.view.list("csidrivers", "").iter().any(|driver| {
            items(&driver.value.value(), "tokenRequests").any(|wanted| meta::str_at(wanted, &["audience"]) == audience)
        })
}

fn lease(request: &Request<'_>, node: &str) -> Verdict {
    refuse(request.namespace != LEASES_NAMESPACE, || {
        format!("can only access leases in the {LEASES_NAMESPACE:?} system namespace")
    })?;
    own_name(request, node, "can only access node lease with the same name as the requesting node")
}

/// The object's name, and the name in the path, are the node's.
fn own_name(request: &Request<'_>, node: &str, why: &str) -> Verdict {
    let in_object = if request.operation == Operation::Create { meta::name(request.object) } else { node };
    let in_path = if request.name.is_empty() { node } else { request.name };
    refuse(in_object != node || in_path != node, || why.to_owned())
}

fn resource_slice(request: &Request<'_>, node: &str) -> Verdict {
    if request.operation != Operation::Create {
        return Ok(());
    }
    refuse(node_of(request.object) != node, || {
        "can only create ResourceSlice with the same NodeName as the requesting node".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;
    use crate::request::UserInfo;
    use serde_json::json;

    fn check(cluster: &Cluster, case: Case) -> std::result::Result<(), String> {
        let user = UserInfo::new("system:node:n1", &["system:nodes", "system:authenticated"]);
        let verdict = case.by(user).validate(cluster, &NodeRestriction);
        verdict.map_err(|error| error.message.split_once("forbidden: ").unwrap().1.to_owned())
    }

    fn cluster() -> Cluster {
        let cluster = Cluster::new();
        cluster.put("minions", json!({"metadata": {"name": "n1", "uid": "u1"}}));
        for (name, node) in [("mine", "n1"), ("other", "n2")] {
            cluster.put(
                "pods",
                json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {"nodeName": node,
                "volumes": [{"projected": {"sources": [{"serviceAccountToken": {"audience": "vault"}}]}}]}}),
            );
        }
        cluster
    }

    #[test]
    fn a_node_writes_its_own_node_object() {
        let cluster = cluster();
        let node = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
        let create = |name, labels| check(&cluster, Case::create("", "nodes", node(name, labels)));
        let known = json!({"kubernetes.io/hostname": "n1", "node.kubernetes.io/x": "y", "mine.example.com/a": "b"});
        assert_eq!(create("n1", known.clone()), Ok(()));
        assert_eq!(create("n2", json!({})), Err(r#"node "n1" is not allowed to modify node "n2""#.into()));
        for label in [
            "node-restriction.kubernetes.io/a",
            "x.node-restriction.kubernetes.io/a",
            "other.kubernetes.io/a",
            "a.k8s.io/b",
        ] {
            let expected = format!(r#"node "n1" is not allowed to modify labels: {label}"#);
            assert_eq!(create("n1", json!({label: "x"})), Err(expected));
        }
        let mut tainted = node("n1", known.clone());
        tainted["spec"] = json!({"taints": [{"key": "a"}]});
        let update = Case::update("", "nodes", node("n1", known), tainted);
        assert_eq!(check(&cluster, update), Err(r#"node "n1" is not allowed to modify taints"#.into()));
    }

    #[test]
    fn a_node_creates_only_mirrors_of_its_own() {
        let cluster = cluster();
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": true});
        let mirror = json!({"metadata": {"name": "p", "namespace": "ns", "annotations": {MIRROR_ANNOTATION: "h"}, "ownerReferences": [owner]},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]}});
        let with = |change: &dyn Fn(&mut Value)| {
            let mut pod = mirror.clone();
            change(&mut pod);
            check(&cluster, Case::create("", "pods", pod))
        };
        assert_eq!(with(&|_| {}), Ok(()));
        type Fault<'a> = (&'a dyn Fn(&mut Value), &'a str);
        let faults: [Fault<'_>; 6] = [
            (&|p| p["metadata"]["annotations"] = json!({}), "can only create mirror pods"),
            (&|p| p["spec"]["nodeName"] = json!("n2"), "spec.nodeName set to itself"),
            (&|p| p["metadata"]["ownerReferences"] = json!([]), "owner reference set to itself"),
            (&|p| p["metadata"]["ownerReferences"][0]["uid"] = json!("old"), "UID mismatch"),
            (&|p| p["spec"]["serviceAccountName"] = json!("x"), "reference a service account"),
            (&|p| p["spec"]["volumes"] = json!([{"configMap": {"name": "x"}}]), "reference configmaps"),
        ];
        for (change, expected) in faults {
            let error = with(change).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_node_touches_only_its_own_pods() {
        let cluster = cluster();
        let pod = |node: &str| json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"nodeName": node}, "status": {}});
        assert_eq!(check(&cluster, Case::delete("", "pods", pod("n1"))), Ok(()));
        assert!(check(&cluster, Case::delete("", "pods", pod("n2"))).is_err());
        let status =
            |old: Value, new: Value| check(&cluster, Case::update("", "pods", new, old).of_subresource("status"));
        let mut running = pod("n1");
        running["status"]["phase"] = json!("Running");
        assert_eq!(status(pod("n1"), running.clone()), Ok(()));
        assert!(status(pod("n2"), running.clone()).is_err());
        running["metadata"]["labels"] = json!({"a": "b"});
        assert_eq!(status(pod("n1"), running), Err(r#"node "n1" cannot update labels through pod status"#.into()));
        let evict = |pod: Value| {
            let case = Case { old: Some(pod), ..Case::create("", "pods", json!({"kind": "Eviction"})) };
            check(&cluster, case.of_subresource("eviction"))
        };
        assert_eq!(evict(pod("n1")), Ok(()));
        assert!(evict(pod("n2")).is_err());
    }

    #[test]
    fn tokens_are_for_the_nodes_pods() {
        let cluster = cluster();
        let ask = |name: &str, uid: &str, audience: &str| {
            let body = json!({"spec": {"audiences": [audience], "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}}});
            let account = json!({"metadata": {"name": "default", "namespace": "ns"}});
            let case = Case { old: Some(account), ..Case::create("", "serviceaccounts", body) };
            check(&cluster, case.of_subresource("token"))
        };
        assert_eq!(ask("mine", "mine", "vault"), Ok(()));
        assert_eq!(ask("mine", "mine", "bank"), Err(r#"audience "bank" not found in pod spec volume"#.into()));
        assert_eq!(ask("mine", "", ""), Err("node requested token with a pod binding without a uid".into()));
        assert_eq!(
            ask("other", "other", ""),
            Err("node requested token bound to a pod scheduled on a different node".into())
        );
        assert_eq!(ask("", "", ""), Err("node requested token not bound to a pod".into()));
    }

    #[test]
    fn leases_are_heartbeats() {
        let cluster = cluster();
        let lease = |namespace: &str, name: &str| {
            let object = json!({"metadata": {"name": name, "namespace": namespace}});
            check(&cluster, Case::create("coordination.k8s.io", "leases", object))
        };
        assert_eq!(lease(LEASES_NAMESPACE, "n1"), Ok(()));
        assert!(lease(LEASES_NAMESPACE, "n2").is_err());
        assert!(lease("kube-system", "n1").is_err());
    }
}
