//! What the targets share: which kind an input is about, and what is done with a body once it is read.
//!
//! A target fails by panicking, by growing over its limit of memory, or by taking longer than its limit of time.

use apimachinery::Value;
use apimachinery::schema::{self, FieldValidation, TypeId, builtin, decode::Duplicates};

/// Kinds whose types between them hold every shape the schema has.
const KINDS: [(&str, &str, &str); 12] = [
    ("", "v1", "Pod"),
    ("", "v1", "Service"),
    ("", "v1", "Secret"),
    ("", "v1", "Node"),
    ("", "v1", "PersistentVolume"),
    ("apps", "v1", "Deployment"),
    ("batch", "v1", "CronJob"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    ("networking.k8s.io", "v1", "Ingress"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
    ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy"),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
];

/// The kind that the first byte chooses, and the rest.
pub fn kind(data: &[u8]) -> Option<(TypeId, &[u8])> {
    let (first, rest) = data.split_first()?;
    let (group, version, kind) = KINDS[usize::from(*first) % KINDS.len()];
    Some((builtin().by_kind(group, version, kind).expect("a kind that is served"), rest))
}

/// Takes a body through what every object goes through: fitted, defaulted, validated. What was fitted once is fitted.
pub fn object(root: TypeId, mut value: Value) {
    let fit = |value: &mut Value| schema::check(builtin(), root, value, &Duplicates::default(), FieldValidation::Warn);
    if fit(&mut value).is_err() {
        return;
    }
    let once = value.clone();
    assert!(fit(&mut value).is_ok_and(|again| again.warnings.is_empty()), "fitted once, and not fit");
    assert_eq!(value, once);
    schema::default(builtin(), root, &mut value);
    schema::validate(builtin(), root, &value);
}
