//! The zone's facts from the shared informers' caches: nothing is copied, every lookup is by key.

use std::net::IpAddr;
use std::sync::Arc;

use client::{Context, Index, Informer};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::zone::Facts;
use crate::endpoints::{by_service, index_key};

pub struct InformerFacts {
    services: Informer<Service>,
    services_by_ip: Index<Service>,
    namespaces: Informer<Namespace>,
    slices: Informer<EndpointSlice>,
    slices_by_service: Index<EndpointSlice>,
    slices_by_ip: Index<EndpointSlice>,
}

impl InformerFacts {
    pub fn new(context: &Context) -> Self {
        let services = context.informers.of::<Service>();
        let slices = context.informers.of::<EndpointSlice>();
        InformerFacts {
            services_by_ip: services.index("network/cluster-ip", |service| {
                let ips =
                    service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
                ips.filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.to_string()).collect()
            }),
            // Only endpoints with a hostname have a reverse name.
            slices_by_ip: slices.index("network/named-endpoint-ip", |slice| {
                let named = slice.endpoints.iter().flatten().filter(|endpoint| endpoint.hostname.is_some());
                named.flat_map(|endpoint| endpoint.addresses.iter().cloned()).collect()
            }),
            slices_by_service: by_service(&slices),
            namespaces: context.informers.of::<Namespace>(),
            services,
            slices,
        }
    }

    /// Returns once the caches hold what the API server has. To answer before would be to deny what exists.
    pub async fn synced(&self) {
        self.services.synced().await;
        self.slices.synced().await;
        self.namespaces.synced().await;
    }
}

impl Facts for InformerFacts {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(namespace, name)
    }

    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices_by_service.get(&index_key(namespace, name))
    }

    fn namespace_exists(&self, name: &str) -> bool {
        self.namespaces.get("", name).is_some()
    }

    fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>> {
        self.services_by_ip.get(&ip.to_string()).into_iter().next()
    }

    fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.slices_by_ip.get(&ip.to_string())
    }
}
