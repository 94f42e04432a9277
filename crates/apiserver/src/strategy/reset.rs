//! What each endpoint of a kind resets, whatever is sent (`GetResetFields` of upstream's strategies): nobody comes to own it there.

use std::sync::LazyLock;

use apimachinery::apply::Filter;
use apimachinery::resource::ResourceRow;

macro_rules! filters {
    ($($name:ident = $filter:expr;)+) => { $(static $name: LazyLock<Filter> = LazyLock::new(|| $filter);)+ };
}

filters! {
    NOTHING = Filter::all();
    STATUS = Filter::except(&[&["status"]]);
    SPEC = Filter::except(&[&["spec"]]);
    SPEC_AND_METADATA = Filter::except(&[&["spec"], &["metadata"]]);
    SPEC_AND_STATUS = Filter::except(&[&["spec"], &["status"]]);
    SPEC_AND_LABELS = Filter::except(&[&["spec"], &["metadata", "labels"]]);
    SPEC_AND_CERTIFICATE = Filter::except(&[&["spec"], &["status", "certificate"]]);
    SPEC_AND_CONDITIONS = Filter::except(&[&["spec"], &["status", "conditions"]]);
    POD_STATUS = Filter::except(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]);
    EPHEMERAL_CONTAINERS = Filter::Only(vec![vec!["spec", "ephemeralContainers"]]);
    RESOURCES = Filter::Only(
        ["containers", "initContainers"]
            .into_iter()
            .flat_map(|list| ["resources", "resizePolicy"].map(|field| vec!["spec", list, "*", field]))
            .collect(),
    );
}

/// The filter of a row's endpoint: the object itself (`""`) or a subresource.
pub fn filter(row: &ResourceRow, subresource: &str) -> &'static Filter {
    if row.custom {
        return match subresource {
            "" if row.has_status() => &STATUS,
            "status" => &SPEC_AND_METADATA,
            _ => &NOTHING,
        };
    }
    match (&*row.group, &*row.plural, subresource) {
        ("", "pods", "status") => &POD_STATUS,
        ("", "pods", "ephemeralcontainers") => &EPHEMERAL_CONTAINERS,
        ("", "pods", "resize") => &RESOURCES,
        ("", "namespaces", "finalize") => &STATUS,
        ("apps", "deployments", "status") => &SPEC_AND_LABELS,
        ("apiregistration.k8s.io", "apiservices", "status")
        | ("flowcontrol.apiserver.k8s.io", "flowschemas" | "prioritylevelconfigurations", "status")
        | ("storage.k8s.io", "volumeattachments", "status") => &SPEC_AND_METADATA,
        ("certificates.k8s.io", "certificatesigningrequests", "") => &SPEC_AND_STATUS,
        ("certificates.k8s.io", "certificatesigningrequests", "status") => &SPEC_AND_CONDITIONS,
        ("certificates.k8s.io", "certificatesigningrequests", "approval") => &SPEC_AND_CERTIFICATE,
        // Upstream lists them under a version that nothing has (`networking/v1`).
        ("networking.k8s.io", "servicecidrs", _) => &NOTHING,
        (_, _, "") if row.has_status() => &STATUS,
        (_, _, "status") => &SPEC,
        _ => &NOTHING,
    }
}

/// The same for an owner who wrote in another version of the kind.
pub fn filter_of_other(row: &ResourceRow, subresource: &str) -> &'static Filter {
    // Upstream's handler of custom resources knows the status of all versions, and of objects only its own.
    if row.custom && subresource.is_empty() { &NOTHING } else { filter(row, subresource) }
}
