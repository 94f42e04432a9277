//! What kinds differ in that needs no code: one line each. A kind that is not listed has none of these traits.

/// Facts about how objects of a kind are written, as upstream's strategies state them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// `metadata.generation` counts the changes of the wish, from 1.
    pub counts_generation: bool,
    /// Writes need not survive loss of power.
    pub volatile: bool,
    /// Objects go away by themselves, `Settings::event_ttl` after their last write (`TTLFunc`).
    pub expires: bool,
    /// A deleted object is answered whole and not as a `Status` (`ReturnDeletedObject`).
    pub answers_deleted_object: bool,
    /// Dependants are orphaned when a delete does not say (`DefaultGarbageCollectionPolicy`).
    pub orphans_dependants: bool,
    /// PUT on a missing object creates it (`AllowCreateOnUpdate`).
    pub created_by_update: bool,
    /// PUT must name the version it started from (not `AllowUnconditionalUpdate`).
    pub update_names_version: bool,
}

const NONE: Traits = Traits {
    counts_generation: false,
    volatile: false,
    expires: false,
    answers_deleted_object: false,
    orphans_dependants: false,
    created_by_update: false,
    update_names_version: false,
};
const COUNTED: Traits = Traits { counts_generation: true, ..NONE };
const COUNTED_PINNED: Traits = Traits { update_names_version: true, ..COUNTED };
const COUNTED_ORPHANING: Traits = Traits { orphans_dependants: true, ..COUNTED };
const PINNED: Traits = Traits { update_names_version: true, ..NONE };
const UPSERTED: Traits = Traits { created_by_update: true, ..NONE };
const ANSWERED: Traits = Traits { answers_deleted_object: true, ..NONE };
const ANSWERED_PINNED: Traits = Traits { answers_deleted_object: true, ..PINNED };
const VOLATILE: Traits = Traits { volatile: true, ..UPSERTED };
const EVENT: Traits = Traits { expires: true, ..VOLATILE };
const LEASE: Traits = Traits { update_names_version: true, ..VOLATILE };

/// Every custom resource.
pub const CUSTOM: Traits = COUNTED_PINNED;

const ADMISSION: &str = "admissionregistration.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const RESOURCE: &str = "resource.k8s.io";
const STORAGE: &str = "storage.k8s.io";

/// Group, plural, traits.
pub const TABLE: &[(&str, &str, Traits)] = &[
    ("", "endpoints", UPSERTED),
    ("", "events", EVENT),
    ("", "limitranges", UPSERTED),
    ("", "namespaces", ANSWERED),
    ("", "persistentvolumeclaims", ANSWERED),
    ("", "persistentvolumes", ANSWERED),
    ("", "pods", Traits { answers_deleted_object: true, ..COUNTED }),
    ("", "podtemplates", Traits { answers_deleted_object: true, created_by_update: true, ..COUNTED }),
    ("", "replicationcontrollers", COUNTED_ORPHANING),
    ("", "resourcequotas", ANSWERED),
    ("", "serviceaccounts", ANSWERED),
    ("", "services", Traits { answers_deleted_object: true, ..UPSERTED }),
    ("apps", "daemonsets", COUNTED),
    ("apps", "deployments", COUNTED),
    ("apps", "replicasets", COUNTED),
    ("apps", "statefulsets", COUNTED),
    ("events.k8s.io", "events", EVENT),
    ("apiregistration.k8s.io", "apiservices", PINNED),
    ("apiextensions.k8s.io", "customresourcedefinitions", COUNTED_PINNED),
    ("batch", "cronjobs", COUNTED),
    ("batch", "jobs", COUNTED_ORPHANING),
    ("coordination.k8s.io", "leases", LEASE),
    ("discovery.k8s.io", "endpointslices", COUNTED),
    ("node.k8s.io", "runtimeclasses", PINNED),
    ("policy", "poddisruptionbudgets", COUNTED_PINNED),
    ("scheduling.k8s.io", "priorityclasses", COUNTED),
    (ADMISSION, "mutatingadmissionpolicies", COUNTED_PINNED),
    (ADMISSION, "mutatingadmissionpolicybindings", COUNTED_PINNED),
    (ADMISSION, "mutatingwebhookconfigurations", COUNTED_PINNED),
    (ADMISSION, "validatingadmissionpolicies", COUNTED_PINNED),
    (ADMISSION, "validatingadmissionpolicybindings", COUNTED_PINNED),
    (ADMISSION, "validatingwebhookconfigurations", COUNTED_PINNED),
    (FLOW, "flowschemas", COUNTED),
    (FLOW, "prioritylevelconfigurations", COUNTED),
    (NETWORKING, "ingressclasses", COUNTED),
    (NETWORKING, "ingresses", COUNTED),
    (NETWORKING, "networkpolicies", COUNTED),
    (RBAC, "clusterrolebindings", UPSERTED),
    (RBAC, "clusterroles", UPSERTED),
    (RBAC, "rolebindings", UPSERTED),
    (RBAC, "roles", UPSERTED),
    (RESOURCE, "deviceclasses", COUNTED),
    (RESOURCE, "devicetaintrules", COUNTED),
    (RESOURCE, "resourceslices", COUNTED),
    (STORAGE, "csidrivers", ANSWERED_PINNED),
    (STORAGE, "csinodes", ANSWERED_PINNED),
    (STORAGE, "csistoragecapacities", ANSWERED_PINNED),
    (STORAGE, "storageclasses", ANSWERED),
    (STORAGE, "volumeattachments", ANSWERED_PINNED),
    (STORAGE, "volumeattributesclasses", ANSWERED),
];

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::resource::builtin;
    use apimachinery::schema::decode::Duplicates;

    #[test]
    fn every_line_is_of_a_kind_that_is_served_and_stands_once() {
        let mut seen = Vec::new();
        for (group, plural, traits) in TABLE {
            let row = builtin().preferred(group, plural).unwrap_or_else(|| panic!("{group}/{plural} is not served"));
            assert!(row.stored && *traits != NONE, "{group}/{plural}");
            assert!(!seen.contains(&(group, plural)), "{group}/{plural} stands twice");
            seen.push((group, plural));
        }
    }

    /// A kind whose status names the generation it has seen must count them, and data kinds must not.
    #[test]
    fn generations_are_counted_where_somebody_reads_them() {
        let counts = |group: &str, plural: &str| {
            TABLE.iter().any(|(g, p, t)| *g == group && *p == plural && t.counts_generation)
        };
        // Upstream has the field in these statuses, and counts in none of the three.
        let uncounted = ["horizontalpodautoscalers", "persistentvolumeclaims", "storageversionmigrations"];
        for row in builtin().rows().filter(|row| row.stored && !uncounted.contains(&&*row.plural)) {
            let sample = serde_json::json!({"status": {"observedGeneration": 1}});
            let mut checked = sample.clone();
            let strict = apimachinery::schema::FieldValidation::Strict;
            let observes = row.check(&mut checked, &Duplicates::default(), strict).is_ok()
                && checked["status"] == sample["status"];
            assert!(!observes || counts(&row.group, &row.plural), "{}/{}", row.group, row.plural);
        }
        for plural in ["configmaps", "secrets", "nodes", "namespaces", "services", "endpoints", "serviceaccounts"] {
            assert!(!counts("", plural), "{plural}");
        }
    }
}
