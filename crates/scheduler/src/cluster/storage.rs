//! What the scheduler knows of claims and volumes.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::pod::PodInfo;
use crate::selector::NodeMatch;

#[derive(Default)]
pub struct Storage {
    claims: HashMap<(String, String), ClaimState>,
    /// Where volumes can be reached from, by name; none is anywhere.
    volumes: HashMap<String, Option<NodeMatch>>,
}

struct ClaimState {
    /// The volume, once bound.
    volume: Option<String>,
    lost: bool,
    deleting: bool,
    owner_uid: Option<String>,
}

impl Storage {
    pub fn set_claim(&mut self, namespace: &str, name: &str, claim: Option<&PersistentVolumeClaim>) {
        let key = (namespace.to_owned(), name.to_owned());
        let Some(claim) = claim else {
            self.claims.remove(&key);
            return;
        };
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        let owners = claim.metadata.owner_references.iter().flatten();
        let state = ClaimState {
            volume: volume.filter(|_| phase == Some("Bound")),
            lost: phase == Some("Lost"),
            deleting: claim.metadata.deletion_timestamp.is_some(),
            owner_uid: owners.filter(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone()).next(),
        };
        self.claims.insert(key, state);
    }

    pub fn set_volume(&mut self, name: &str, volume: Option<&PersistentVolume>) {
        match volume {
            None => _ = self.volumes.remove(name),
            Some(volume) => {
                let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
                let nodes = affinity.and_then(|affinity| affinity.required.as_ref()).map(NodeMatch::new);
                self.volumes.insert(name.to_owned(), nodes);
            }
        }
    }

    /// Where the volumes of a pod can be reached from, or why they cannot be had yet.
    pub fn reachable(&self, pod: &PodInfo) -> Result<Vec<&NodeMatch>, String> {
        let mut nodes = Vec::new();
        for claim in &pod.claims {
            let name = &claim.name;
            let Some(state) = self.claims.get(&(pod.namespace().to_owned(), name.clone())) else {
                return Err(match claim.ephemeral {
                    true => {
                        format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
                    }
                    false => format!("persistentvolumeclaim {name:?} not found"),
                });
            };
            if state.lost {
                return Err(format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume"));
            }
            if state.deleting {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if claim.ephemeral && state.owner_uid.as_deref() != Some(&*pod.uid) {
                let (namespace, pod) = (pod.namespace(), pod.name());
                return Err(format!(
                    "PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
                ));
            }
            let Some(volume) = &state.volume else {
                return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
            };
            match self.volumes.get(volume) {
                Some(reachable) => nodes.extend(reachable),
                None => return Err(format!("persistentvolume {volume:?} not found")),
            }
        }
        Ok(nodes)
    }
}
