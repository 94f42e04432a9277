//! Which objects a node may read: those that its pods refer to, directly or through a claim and its volume.
//!
//! Pure: fed with changed objects. The same relations as upstream's node authoriser graph, kept as reverse indexes.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

use serde::Deserialize;

/// Something that a pod, or a volume of a pod, refers to. Namespaces are empty where the kind has none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Referred {
    pub kind: Kind,
    pub namespace: Box<str>,
    pub name: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Pod,
    Secret,
    ConfigMap,
    Claim,
    Volume,
    ServiceAccount,
    ResourceClaim,
    Attachment,
    ResourceSlice,
    PodCertificateRequest,
}

impl Referred {
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Referred { kind, namespace: namespace.into(), name: name.into() }
    }
}

type Node = Box<str>;

/// The key of an object that refers to others: the index of its prefix, namespace, name.
type Source = (usize, Box<str>, Box<str>);

pub const PREFIXES: &[&str] =
    &["pods", "persistentvolumes", "volumeattachments", "resourceslices", "podcertificaterequests"];
const PODS: usize = 0;
const VOLUMES: usize = 1;

#[derive(Debug, Default)]
pub struct NodeGraph {
    /// What each object refers to, and for which node.
    sources: HashMap<Source, (Node, Vec<Referred>)>,
    /// Nodes that reach an object directly, with the number of sources that say so.
    direct: HashMap<Referred, HashMap<Node, usize>>,
    /// Each volume's claim, and what the volume brings along: itself and secrets.
    volumes: HashMap<Box<str>, (Referred, Vec<Referred>)>,
    /// The claims by which an object is reached, with the number of volumes that say so.
    claims_of: HashMap<Referred, HashMap<Referred, usize>>,
}

impl NodeGraph {
    pub fn reaches(&self, node: &str, wanted: &Referred) -> bool {
        let direct = |r: &Referred| self.direct.get(r).is_some_and(|nodes| nodes.contains_key(node));
        direct(wanted) || self.claims_of.get(wanted).is_some_and(|claims| claims.keys().any(direct))
    }

    /// Takes in the state of one object of `PREFIXES[prefix]`; `None` is its absence.
    pub fn apply(&mut self, prefix: usize, namespace: &str, name: &str, json: Option<&[u8]>) {
        if prefix == VOLUMES {
            self.apply_volume(name, json);
            return;
        }
        let key: Source = (prefix, namespace.into(), name.into());
        let new = json.and_then(|json| match prefix {
            PODS => pod_references(namespace, name, json),
            _ => other_references(prefix, namespace, name, json),
        });
        // Nearly all changes of a pod are of its status.
        if self.sources.get(&key) == new.as_ref() {
            return;
        }
        if let Some((node, old)) = self.sources.remove(&key) {
            for referred in old {
                discount(&mut self.direct, &referred, &node);
            }
        }
        if let Some((node, references)) = new {
            for referred in &references {
                *self.direct.entry(referred.clone()).or_default().entry(node.clone()).or_default() += 1;
            }
            self.sources.insert(key, (node, references));
        }
    }

    fn apply_volume(&mut self, name: &str, json: Option<&[u8]>) {
        if let Some((claim, old)) = self.volumes.remove(name) {
            for reached in old {
                discount(&mut self.claims_of, &reached, &claim);
            }
        }
        let Some((claim, mut reached)) = json.and_then(volume_references) else { return };
        reached.push(Referred::new(Kind::Volume, "", name));
        for referred in &reached {
            *self.claims_of.entry(referred.clone()).or_default().entry(claim.clone()).or_default() += 1;
        }
        self.volumes.insert(name.into(), (claim, reached));
    }
}

/// Takes one from `counts[outer][inner]`; nothing stays behind at zero.
fn discount<I, Q>(counts: &mut HashMap<Referred, HashMap<I, usize>>, outer: &Referred, inner: &Q)
where
    I: Eq + Hash + Borrow<Q>,
    Q: Eq + Hash + ?Sized,
{
    let Some(inners) = counts.get_mut(outer) else { return };
    if let Some(count) = inners.get_mut(inner) {
        *count -= 1;
        if *count == 0 {
            inners.remove(inner);
        }
    }
    if inners.is_empty() {
        counts.remove(outer);
    }
}

/// The few fields of a pod that refer to other objects.
mod shape {
    use super::Deserialize;

    #[derive(Deserialize, Default)]
    pub struct Named {
        #[serde(default)]
        pub name: Box<str>,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct Source {
        pub secret_name: Option<Box<str>>,
        pub name: Option<Box<str>>,
        pub claim_name: Option<Box<str>>,
        /// Of volume plugins that name a secret (`secretRef`, `nodePublishSecretRef`).
        #[serde(alias = "nodePublishSecretRef")]
        pub secret_ref: Option<Named>,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct Projection {
        pub secret: Option<Named>,
        pub config_map: Option<Named>,
    }

    #[derive(Deserialize, Default)]
    #[serde(default)]
    pub struct Projected {
        pub sources: Option<Vec<Projection>>,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct Volume {
        pub name: Box<str>,
        pub secret: Option<Source>,
        pub config_map: Option<Source>,
        pub projected: Option<Projected>,
        pub persistent_volume_claim: Option<Source>,
        pub ephemeral: Option<serde::de::IgnoredAny>,
        pub csi: Option<Source>,
        #[serde(alias = "cephfs", alias = "flexVolume", alias = "scaleIO", alias = "iscsi", alias = "storageos")]
        pub rbd: Option<Source>,
        pub azure_file: Option<Source>,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct ValueFrom {
        pub secret_key_ref: Option<Named>,
        pub config_map_key_ref: Option<Named>,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct Env {
        pub value_from: Option<ValueFrom>,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct EnvFrom {
        pub secret_ref: Option<Named>,
        pub config_map_ref: Option<Named>,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct Container {
        pub env: Option<Vec<Env>>,
        pub env_from: Option<Vec<EnvFrom>>,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct ResourceClaim {
        pub name: Box<str>,
        pub resource_claim_name: Option<Box<str>>,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct PodSpec {
        pub node_name: Box<str>,
        pub service_account_name: Box<str>,
        pub image_pull_secrets: Option<Vec<Named>>,
        pub volumes: Option<Vec<Volume>>,
        pub containers: Option<Vec<Container>>,
        pub init_containers: Option<Vec<Container>>,
        pub ephemeral_containers: Option<Vec<Container>>,
        pub resource_claims: Option<Vec<ResourceClaim>>,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct PodStatus {
        pub resource_claim_statuses: Option<Vec<ResourceClaim>>,
    }

    #[derive(Deserialize, Default)]
    #[serde(default)]
    pub struct Metadata {
        pub annotations: Option<std::collections::HashMap<Box<str>, Box<str>>>,
    }

    #[derive(Deserialize)]
    pub struct Pod {
        #[serde(default)]
        pub metadata: Metadata,
        #[serde(default)]
        pub spec: PodSpec,
        #[serde(default)]
        pub status: PodStatus,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct Bound {
        pub node_name: Box<str>,
        pub namespace: Box<str>,
        pub name: Box<str>,
    }

    #[derive(Deserialize)]
    pub struct OnNode {
        pub spec: Bound,
    }
}

/// The node of a pod and all that the pod refers to. Nothing for pods without a node, and for mirror pods: what those say comes
/// from the node itself.
fn pod_references(namespace: &str, name: &str, json: &[u8]) -> Option<(Node, Vec<Referred>)> {
    let pod: shape::Pod = serde_json::from_slice(json).ok()?;
    let node = pod.spec.node_name.clone();
    if node.is_empty() {
        return None;
    }
    let mut out = vec![Referred::new(Kind::Pod, namespace, name)];
    let mirror = pod.metadata.annotations.is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
    if mirror {
        return Some((node, out));
    }
    let mut refer = |kind: Kind, name: &str| {
        let referred = Referred::new(kind, namespace, name);
        if !name.is_empty() && !out.contains(&referred) {
            out.push(referred);
        }
    };
    refer(Kind::ServiceAccount, &pod.spec.service_account_name);
    for secret in pod.spec.image_pull_secrets.iter().flatten() {
        refer(Kind::Secret, &secret.name);
    }
    for container in [&pod.spec.containers, &pod.spec.init_containers, &pod.spec.ephemeral_containers]
        .into_iter()
        .flatten()
        .flatten()
    {
        container_references(container, &mut refer);
    }
    for volume in pod.spec.volumes.iter().flatten() {
        volume_source_references(name, volume, &mut refer);
    }
    let claims = [&pod.spec.resource_claims, &pod.status.resource_claim_statuses];
    for claim in claims.into_iter().flatten().flatten() {
        refer(Kind::ResourceClaim, claim.resource_claim_name.as_deref().unwrap_or_default());
    }
    Some((node, out))
}

fn container_references(container: &shape::Container, refer: &mut impl FnMut(Kind, &str)) {
    let mut each = |secret: &Option<shape::Named>, config: &Option<shape::Named>| {
        refer(Kind::Secret, secret.as_ref().map_or("", |s| &s.name));
        refer(Kind::ConfigMap, config.as_ref().map_or("", |c| &c.name));
    };
    for from in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        each(&from.secret_key_ref, &from.config_map_key_ref);
    }
    for from in container.env_from.iter().flatten() {
        each(&from.secret_ref, &from.config_map_ref);
    }
}

fn volume_source_references(pod: &str, volume: &shape::Volume, refer: &mut impl FnMut(Kind, &str)) {
    if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()) {
        refer(Kind::Secret, name);
    }
    if let Some(name) = volume.config_map.as_ref().and_then(|c| c.name.as_deref()) {
        refer(Kind::ConfigMap, name);
    }
    for source in volume.projected.iter().filter_map(|p| p.sources.as_ref()).flatten() {
        refer(Kind::Secret, source.secret.as_ref().map_or("", |s| &s.name));
        refer(Kind::ConfigMap, source.config_map.as_ref().map_or("", |c| &c.name));
    }
    if let Some(name) = volume.persistent_volume_claim.as_ref().and_then(|c| c.claim_name.as_deref()) {
        refer(Kind::Claim, name);
    }
    if volume.ephemeral.is_some() {
        refer(Kind::Claim, &format!("{pod}-{}", volume.name));
    }
    for source in [&volume.csi, &volume.rbd].into_iter().flatten() {
        refer(Kind::Secret, source.secret_ref.as_ref().map_or("", |s| &s.name));
    }
    if let Some(name) = volume.azure_file.as_ref().and_then(|a| a.secret_name.as_deref()) {
        refer(Kind::Secret, name);
    }
}

/// Objects that name their node themselves are reached by that node.
fn other_references(prefix: usize, namespace: &str, name: &str, json: &[u8]) -> Option<(Node, Vec<Referred>)> {
    let kind = match PREFIXES[prefix] {
        "volumeattachments" => Kind::Attachment,
        "resourceslices" => Kind::ResourceSlice,
        _ => Kind::PodCertificateRequest,
    };
    let object: shape::OnNode = serde_json::from_slice(json).ok()?;
    let node = object.spec.node_name;
    (!node.is_empty()).then(|| (node, vec![Referred::new(kind, namespace, name)]))
}

/// The claim that a volume is bound to, and the secrets that the volume names (any `{name, namespace}` under a key that ends in
/// `SecretRef` or is `secretRef`; without a namespace it is the claim's).
fn volume_references(json: &[u8]) -> Option<(Referred, Vec<Referred>)> {
    let volume: serde_json::Value = serde_json::from_slice(json).ok()?;
    let spec = volume.get("spec")?;
    let claim: shape::Bound = shape::Bound::deserialize(spec.get("claimRef")?).ok()?;
    if claim.name.is_empty() {
        return None;
    }
    let mut secrets = Vec::new();
    for source in spec.as_object()?.values().filter_map(serde_json::Value::as_object) {
        for (key, value) in source {
            let text = |field: &str| value.get(field).and_then(serde_json::Value::as_str).unwrap_or_default();
            if key.ends_with("SecretRef") || key == "secretRef" {
                let namespace = if text("namespace").is_empty() { &*claim.namespace } else { text("namespace") };
                secrets.push(Referred::new(Kind::Secret, namespace, text("name")));
            } else if key == "secretName" {
                let named = source.get("secretNamespace").and_then(serde_json::Value::as_str).unwrap_or_default();
                let namespace = if named.is_empty() { &*claim.namespace } else { named };
                secrets.push(Referred::new(Kind::Secret, namespace, value.as_str().unwrap_or_default()));
            }
        }
    }
    secrets.retain(|secret| !secret.name.is_empty());
    Some((Referred::new(Kind::Claim, &claim.namespace, &claim.name), secrets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_reaches_what_its_pods_refer_to() {
        let mut graph = NodeGraph::default();
        let pod = json!({"metadata": {}, "spec": {
            "nodeName": "n1", "serviceAccountName": "bot", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"env": [{"name": "A", "value": "x"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}],
                            "envFrom": [{"configMapRef": {"name": "settings"}}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}},
                        {"name": "e", "ephemeral": {"volumeClaimTemplate": {}}},
                        {"name": "p", "projected": {"sources": [{"configMap": {"name": "ca"}}, {"serviceAccountToken": {"path": "t"}}]}}],
        }});
        graph.apply(PODS, "ns", "p", Some(pod.to_string().as_bytes()));
        let volume = json!({"spec": {"claimRef": {"namespace": "ns", "name": "data"},
            "csi": {"driver": "d", "nodeStageSecretRef": {"name": "stage", "namespace": "csi"}}}});
        graph.apply(VOLUMES, "", "pv1", Some(volume.to_string().as_bytes()));

        let reached = [
            Referred::new(Kind::Pod, "ns", "p"),
            Referred::new(Kind::ServiceAccount, "ns", "bot"),
            Referred::new(Kind::Secret, "ns", "pull"),
            Referred::new(Kind::Secret, "ns", "key"),
            Referred::new(Kind::ConfigMap, "ns", "settings"),
            Referred::new(Kind::ConfigMap, "ns", "ca"),
            Referred::new(Kind::Claim, "ns", "data"),
            Referred::new(Kind::Claim, "ns", "p-e"),
            Referred::new(Kind::Volume, "", "pv1"),
            Referred::new(Kind::Secret, "csi", "stage"),
        ];
        for referred in &reached {
            assert!(graph.reaches("n1", referred), "{referred:?}");
            assert!(!graph.reaches("n2", referred), "{referred:?}");
        }
        assert!(!graph.reaches("n1", &Referred::new(Kind::Secret, "other", "key")));

        graph.apply(PODS, "ns", "p", None);
        assert!(reached.iter().all(|referred| !graph.reaches("n1", referred)));
        graph.apply(VOLUMES, "", "pv1", None);
        assert!(graph.direct.is_empty() && graph.claims_of.is_empty() && graph.sources.is_empty());
    }

    #[test]
    fn a_mirror_pod_gives_its_node_nothing() {
        let mut graph = NodeGraph::default();
        let pod = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}},
            "spec": {"nodeName": "n1", "imagePullSecrets": [{"name": "pull"}]}});
        graph.apply(PODS, "ns", "p", Some(pod.to_string().as_bytes()));
        assert!(!graph.reaches("n1", &Referred::new(Kind::Secret, "ns", "pull")));
        assert!(graph.reaches("n1", &Referred::new(Kind::Pod, "ns", "p")));
    }

    mod laws {
        use super::*;
        use proptest::prelude::*;
        use std::collections::BTreeMap;

        #[derive(Clone, Debug)]
        enum Change {
            /// Pod, node (0: none), secret, claim.
            Pod(u8, u8, u8, u8),
            /// Volume, claim, secret.
            Volume(u8, u8, u8),
            GonePod(u8),
            GoneVolume(u8),
        }

        fn change() -> impl Strategy<Value = Change> {
            prop_oneof![
                4 => (0..4u8, 0..3u8, 0..3u8, 0..3u8).prop_map(|(p, n, s, c)| Change::Pod(p, n, s, c)),
                2 => (0..3u8, 0..3u8, 0..3u8).prop_map(|(v, c, s)| Change::Volume(v, c, s)),
                1 => (0..4u8).prop_map(Change::GonePod),
                1 => (0..3u8).prop_map(Change::GoneVolume),
            ]
        }

        fn pod(node: u8, secret: u8, claim: u8) -> String {
            let node = if node == 0 { String::new() } else { format!("n{node}") };
            json!({"spec": {"nodeName": node, "volumes": [{"secret": {"secretName": format!("s{secret}")}},
                {"persistentVolumeClaim": {"claimName": format!("c{claim}")}}]}})
            .to_string()
        }

        fn volume(claim: u8, secret: u8) -> String {
            json!({"spec": {"claimRef": {"namespace": "ns", "name": format!("c{claim}")},
                "csi": {"nodeStageSecretRef": {"name": format!("s{secret}"), "namespace": "ns"}}}})
            .to_string()
        }

        proptest! {
            /// The incremental indexes answer as one look over all objects would.
            #[test]
            fn the_graph_is_what_its_objects_say(changes in prop::collection::vec(change(), 1..30)) {
                let mut graph = NodeGraph::default();
                let (mut pods, mut volumes) = (BTreeMap::new(), BTreeMap::new());
                for change in changes {
                    match change {
                        Change::Pod(p, n, s, c) => {
                            graph.apply(PODS, "ns", &format!("p{p}"), Some(pod(n, s, c).as_bytes()));
                            pods.insert(p, (n, s, c));
                        }
                        Change::Volume(v, c, s) => {
                            graph.apply(VOLUMES, "", &format!("v{v}"), Some(volume(c, s).as_bytes()));
                            volumes.insert(v, (c, s));
                        }
                        Change::GonePod(p) => {
                            graph.apply(PODS, "ns", &format!("p{p}"), None);
                            pods.remove(&p);
                        }
                        Change::GoneVolume(v) => {
                            graph.apply(VOLUMES, "", &format!("v{v}"), None);
                            volumes.remove(&v);
                        }
                    }
                }
                for node in 1..3u8 {
                    let claims: Vec<u8> = pods.values().filter(|p| p.0 == node).map(|p| p.2).collect();
                    for n in 0..3u8 {
                        let by_volume = volumes.values().any(|(claim, secret)| *secret == n && claims.contains(claim));
                        let secret = by_volume || pods.values().any(|p| p.0 == node && p.1 == n);
                        let asked = Referred::new(Kind::Secret, "ns", &format!("s{n}"));
                        prop_assert_eq!(graph.reaches(&format!("n{node}"), &asked), secret);
                        let volume = volumes.get(&n).is_some_and(|(claim, _)| claims.contains(claim));
                        let asked = Referred::new(Kind::Volume, "", &format!("v{n}"));
                        prop_assert_eq!(graph.reaches(&format!("n{node}"), &asked), volume);
                    }
                }
            }
        }
    }
}
