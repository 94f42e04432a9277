//! Who a pod of a stateful set is: its name, ordinal, labels and volumes, all of which outlive the pod. Pure.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};

use crate::pod_control::pod_from;

/// Names the revision that a pod is of.
pub const REVISION: &str = "controller-revision-hash";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

pub fn name_of(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", name_of(set))
}

/// The set's name and the ordinal, if a pod's name is made of two such.
fn parts(name: &str) -> Option<(&str, i32)> {
    let (parent, digits) = name.rsplit_once('-')?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    Some((parent, digits.parse().ok().filter(|_| plain)?))
}

/// The ordinal of a pod that bears the set's name.
pub fn ordinal_of(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let (parent, ordinal) = parts(pod.metadata.name.as_deref()?)?;
    (parent == name_of(set)).then_some(ordinal)
}

pub fn revision_of(pod: &Pod) -> &str {
    label(pod, REVISION).unwrap_or_default()
}

fn label<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

pub fn start_of(set: &StatefulSet) -> i32 {
    set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
}

pub fn replicas_of(set: &StatefulSet) -> i32 {
    set.spec.replicas.unwrap_or(1).max(0)
}

/// Whether the ordinal is one that the set asks for.
pub fn is_wanted(set: &StatefulSet, ordinal: i32) -> bool {
    let start = start_of(set);
    start <= ordinal && ordinal < start.saturating_add(replicas_of(set))
}

pub fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", template.metadata.name.as_deref().unwrap_or_default(), name_of(set))
}

/// The claims of the pod with this ordinal, each with the name of its template.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<(String, PersistentVolumeClaim)> {
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(set, template, ordinal));
        claim.metadata.namespace = set.metadata.namespace.clone();
        let selected = set.spec.selector.match_labels.clone().unwrap_or_default();
        claim.metadata.labels.get_or_insert_default().extend(selected);
        (template.metadata.name.clone().unwrap_or_default(), claim)
    };
    set.spec.volume_claim_templates.iter().flatten().map(claim).collect()
}

/// A new pod of a revision, whose template this is.
pub fn new_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = pod_from(set, template);
    let name = pod_name(set, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    pod.metadata.labels.get_or_insert_default().insert(REVISION.to_owned(), revision.to_owned());
    set_labels(&mut pod, ordinal);
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.service_name.clone();
    set_volumes(set, &mut pod, ordinal);
    pod
}

fn set_labels(pod: &mut Pod, ordinal: i32) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name);
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
}

/// Volumes of the claims take the place of volumes of the same name.
fn set_volumes(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let claims = claims(set, ordinal);
    let volumes = pod.spec.get_or_insert_default().volumes.get_or_insert_default();
    volumes.retain(|volume| claims.iter().all(|(name, _)| *name != volume.name));
    let claimed = claims.into_iter().map(|(name, claim)| Volume {
        name,
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.metadata.name.unwrap_or_default(),
            read_only: None,
        }),
        ..Volume::default()
    });
    volumes.splice(0..0, claimed);
}

pub fn identity_matches(pod: &Pod, ordinal: i32) -> bool {
    label(pod, POD_NAME) == pod.metadata.name.as_deref() && label(pod, POD_INDEX) == Some(&ordinal.to_string())
}

pub fn storage_matches(set: &StatefulSet, pod: &Pod, ordinal: i32) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    claims(set, ordinal).iter().all(|(name, claim)| {
        let source = volumes.iter().find(|volume| volume.name == *name);
        let source = source.and_then(|volume| volume.persistent_volume_claim.as_ref());
        source.map(|source| &source.claim_name) == claim.metadata.name.as_ref()
    })
}

/// The pod as it should be.
pub fn corrected(set: &StatefulSet, pod: &Pod, ordinal: i32) -> Pod {
    let mut pod = pod.clone();
    set_labels(&mut pod, ordinal);
    if !storage_matches(set, &pod, ordinal) {
        set_volumes(set, &mut pod, ordinal);
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    fn set() -> StatefulSet {
        yaml(
            "{ metadata: { name: web, namespace: ns, uid: u }, spec: { serviceName: nginx, selector: { matchLabels: { app: web } }, ordinals: { start: 2 }, replicas: 2,
               template: { metadata: { labels: { app: web } }, spec: { containers: [{ name: c }], volumes: [{ name: data, emptyDir: {} }, { name: tmp, emptyDir: {} }] } },
               volumeClaimTemplates: [{ metadata: { name: data, labels: { tier: x } } }] } }",
        )
    }

    #[test]
    fn a_pod_is_known_by_its_ordinal() {
        let set = set();
        let pod = new_pod(&set, &set.spec.template, "web-r1", 3);
        assert_eq!(pod.metadata.name.as_deref(), Some("web-3"));
        let labels = pod.metadata.labels.clone().expect("labelled");
        assert_eq!(
            [&labels[REVISION], &labels[POD_NAME], &labels[POD_INDEX], &labels["app"]],
            ["web-r1", "web-3", "3", "web"]
        );
        let spec = pod.spec.as_ref().expect("a spec");
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-3"), Some("nginx")));
        let volumes = spec.volumes.as_ref().expect("volumes");
        assert_eq!(volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["data", "tmp"]);
        assert_eq!(volumes[0].persistent_volume_claim.as_ref().expect("a claim").claim_name, "data-web-3");
        assert!(identity_matches(&pod, 3) && storage_matches(&set, &pod, 3));
        let stray: Pod = yaml("{ metadata: { name: web-3 } }");
        assert!(!identity_matches(&stray, 3) && !storage_matches(&set, &stray, 3));
        let right = corrected(&set, &stray, 3);
        assert!(identity_matches(&right, 3) && storage_matches(&set, &right, 3));
        let (_, claim) = &claims(&set, 3)[0];
        let labels = claim.metadata.labels.clone().expect("labelled");
        assert_eq!((labels["tier"].as_str(), labels["app"].as_str()), ("x", "web"));
    }

    #[test]
    fn names_of_others_have_no_ordinal() {
        let set = set();
        let ordinal = |name: &str| ordinal_of(&set, &yaml(&format!("{{ metadata: {{ name: {name} }} }}")));
        assert_eq!(ordinal("web-12"), Some(12));
        for name in ["web", "web-", "web-a", "web-+1", "other-1", "web-1-2", "web-99999999999"] {
            assert_eq!(ordinal(name), None, "{name}");
        }
        assert!(is_wanted(&set, 2) && is_wanted(&set, 3) && !is_wanted(&set, 1) && !is_wanted(&set, 4));
    }
}
