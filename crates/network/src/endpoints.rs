//! The EndpointSlices of each service, found by the service's name: what kube-proxy and cluster DNS both read.

use client::{Change, Index, Informer, ObjectKey};
use k8s_openapi::api::discovery::v1::EndpointSlice;

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The service that a slice belongs to, as namespace and name.
pub fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some((slice.metadata.namespace.clone().unwrap_or_default(), name.clone()))
}

/// The key of a service in [`by_service`].
pub fn index_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// The slices by the service that they belong to.
pub fn by_service(slices: &Informer<EndpointSlice>) -> Index<EndpointSlice> {
    slices.index("network/service", |slice| {
        service_of(slice).map(|(namespace, name)| index_key(&namespace, &name)).into_iter().collect()
    })
}

/// The services that a change of a slice concerns: one, or two if its label was edited.
pub fn services_of_change(change: &Change<'_, EndpointSlice>) -> impl Iterator<Item = ObjectKey> + use<> {
    let now = service_of(change.object());
    let before = change.old().and_then(|slice| service_of(slice)).filter(|before| now.as_ref() != Some(before));
    before.into_iter().chain(now)
}
