//! How many pods their owners want: of the kinds known here from the caches, of all others from their `scale` subresource.

use std::collections::HashMap;
use std::sync::Arc;

use client::{Context, Informer, Kind};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use parking_lot::Mutex;

use crate::discovery::{Discovered, Resource, discover};
use crate::error::{Error, Result};
use crate::owner::controller_of;

/// Why a scale is not known.
#[derive(Debug)]
pub enum Unknown {
    /// It will not be known as things are; the budget says why.
    Never(String),
    /// The server could not be asked.
    Now(Error),
}

impl From<Error> for Unknown {
    fn from(error: Error) -> Self {
        Unknown::Now(error)
    }
}

/// The pods' owners, taken together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Owners {
    pub scale: i32,
    /// Pods without an owner are not in the scale.
    pub unmanaged: usize,
}

pub struct Scales {
    client: kube::Client,
    pub sets: Informer<ReplicaSet>,
    pub deployments: Informer<Deployment>,
    pub stateful: Informer<StatefulSet>,
    pub controllers: Informer<ReplicationController>,
    discovered: Mutex<Arc<Discovered>>,
}

/// Owner's UID and its wish.
type Found = Option<(String, i32)>;

impl Scales {
    pub fn new(context: &Context, client: kube::Client) -> Self {
        Scales {
            client,
            sets: context.informers.of(),
            deployments: context.informers.of(),
            stateful: context.informers.of(),
            controllers: context.informers.of(),
            discovered: Mutex::default(),
        }
    }

    pub async fn synced(&self) {
        self.sets.synced().await;
        self.deployments.synced().await;
        self.stateful.synced().await;
        self.controllers.synced().await;
    }

    /// What the owners of `pods`, all of one namespace, want in all. Each owner is asked once.
    pub async fn of(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<Owners, Unknown> {
        let mut known: HashMap<String, i32> = HashMap::new();
        let mut asked: HashMap<&str, ()> = HashMap::new();
        let mut unmanaged = 0;
        for pod in pods {
            let Some(reference) = controller_of(&pod.metadata) else {
                unmanaged += 1;
                continue;
            };
            if asked.insert(&reference.uid, ()).is_some() {
                continue;
            }
            match self.owner(namespace, reference).await? {
                Some((uid, scale)) => known.insert(uid, scale),
                None => {
                    let name = pod.metadata.name.as_deref().unwrap_or_default();
                    return Err(Unknown::Never(format!("found no controllers for pod {name:?}")));
                }
            };
        }
        let scale = known.into_values().fold(0, i32::saturating_add);
        Ok(Owners { scale, unmanaged })
    }

    async fn owner(&self, namespace: &str, reference: &OwnerReference) -> Result<Found, Unknown> {
        let group = reference.api_version.split_once('/').map_or("", |(group, _)| group);
        match (group, reference.kind.as_str()) {
            ("apps", "ReplicaSet") => Ok(self.replica_set(namespace, reference)),
            ("apps", "StatefulSet") => Ok(found(&self.stateful, namespace, reference)
                .map(|set| (reference.uid.clone(), set.spec.replicas.unwrap_or(1)))),
            ("", "ReplicationController") => Ok(found(&self.controllers, namespace, reference)
                .map(|rc| (reference.uid.clone(), rc.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)))),
            _ => self.other(namespace, reference).await,
        }
    }

    /// Of a deployment's set, the deployment's wish: during a rollout it has several sets.
    fn replica_set(&self, namespace: &str, reference: &OwnerReference) -> Found {
        let set = found(&self.sets, namespace, reference)?;
        let Some(above) = controller_of(&set.metadata).filter(|above| above.kind == "Deployment") else {
            return Some((reference.uid.clone(), set.spec.replicas.unwrap_or(1)));
        };
        let deployment = found(&self.deployments, namespace, above)?;
        Some((above.uid.clone(), deployment.spec.replicas.unwrap_or(1)))
    }

    async fn other(&self, namespace: &str, reference: &OwnerReference) -> Result<Found, Unknown> {
        let resource = self.resource(reference).await?;
        if !resource.scalable {
            let name = resource.name();
            let name = name.strip_suffix('.').unwrap_or(&name);
            return Err(Unknown::Never(format!("{name} does not implement the scale subresource")));
        }
        let url = resource.path(namespace);
        let request = kube::core::Request::new(url).get_subresource("scale", &reference.name);
        let request = request.map_err(kube::Error::BuildRequest).map_err(Error::from)?;
        let scale: Option<Scale> = client::found(self.client.request(request).await).map_err(Error::from)?;
        let scale = scale.filter(|scale| scale.metadata.uid.as_deref() == Some(&reference.uid));
        let wish = |scale: Scale| scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        Ok(scale.map(|scale| (reference.uid.clone(), wish(scale))))
    }

    async fn resource(&self, reference: &OwnerReference) -> Result<Arc<Resource>, Unknown> {
        let known = self.discovered.lock().clone();
        if let Some(resource) = known.of_kind(&reference.api_version, &reference.kind) {
            return Ok(resource);
        }
        let discovered = Arc::new(discover(&self.client).await?);
        *self.discovered.lock() = discovered.clone();
        discovered.of_kind(&reference.api_version, &reference.kind).ok_or_else(|| {
            let OwnerReference { kind, api_version, .. } = reference;
            Unknown::Never(format!("no matches for kind {kind:?} in version {api_version:?}"))
        })
    }
}

/// The owner that a reference names, if it is still the same one.
fn found<K: Kind>(informer: &Informer<K>, namespace: &str, reference: &OwnerReference) -> Option<Arc<K>> {
    let owner = informer.get(namespace, &reference.name)?;
    (owner.meta().uid.as_deref() == Some(&reference.uid)).then_some(owner)
}
