//! Distributes endpoints over slices with as few writes as possible (upstream's endpointslice reconciler). Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::endpoint::Family;

/// Endpoints in one slice at most (upstream's default).
pub const MAX_ENDPOINTS: usize = 100;

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What all slices of one service have in common.
#[derive(Clone, Debug)]
pub struct Common {
    pub namespace: String,
    pub service: String,
    pub labels: BTreeMap<String, String>,
    /// Set on every slice that is written; [`TRIGGER_TIME`] among them if known.
    pub annotations: BTreeMap<String, String>,
    pub owner: OwnerReference,
}

/// Endpoints of one family that have the same ports.
#[derive(Clone, Debug, Default)]
pub struct Group {
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default)]
pub struct Writes {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// What makes an endpoint the same one in another state.
#[derive(PartialEq, Eq, Hash)]
struct Identity {
    addresses: Vec<String>,
    hostname: Option<String>,
    target_uid: Option<String>,
}

fn identity(endpoint: &Endpoint) -> Identity {
    Identity {
        addresses: endpoint.addresses.clone(),
        hostname: endpoint.hostname.clone(),
        target_uid: endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()),
    }
}

/// The writes that bring `existing` (all slices of the service and manager) to `wanted`. A family without endpoints gets
/// one empty slice, so that a consumer can tell "none" from "not known yet".
pub fn pack(common: &Common, wanted: &BTreeMap<Family, Vec<Group>>, existing: &[Arc<EndpointSlice>]) -> Writes {
    let mut writes = Writes::default();
    let mut existing: Vec<Arc<EndpointSlice>> = existing.to_vec();
    existing.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for (family, groups) in wanted {
        let (of_family, others) = existing.into_iter().partition(|slice| slice.address_type == family.name());
        existing = others;
        pack_family(common, *family, groups, of_family, &mut writes);
    }
    // What is left is of families that the service no longer has.
    writes.delete.extend(existing);
    writes
}

fn pack_family(
    common: &Common,
    family: Family,
    groups: &[Group],
    existing: Vec<Arc<EndpointSlice>>,
    writes: &mut Writes,
) {
    let mut unclaimed = existing;
    let mut slices = 0;
    for group in groups.iter().filter(|group| !group.endpoints.is_empty()) {
        let (same_ports, others) = unclaimed.into_iter().partition(|slice| ports_of(slice) == group.ports);
        unclaimed = others;
        let mut bins = Bins::sort(common, group, same_ports);
        bins.fill();
        slices += bins.write(common, family, &group.ports, writes);
    }
    if slices == 0 {
        match unclaimed.iter().position(|slice| endpoints_of(slice).is_empty() && ports_of(slice).is_empty()) {
            Some(empty) => {
                let slice = unclaimed.swap_remove(empty);
                if differs(common, &slice) {
                    writes.update.push(rewritten(common, &slice, vec![]));
                }
            }
            None => writes.create.push(new_slice(common, family, &[], vec![])),
        }
    }
    writes.delete.extend(unclaimed);
}

fn endpoints_of(slice: &EndpointSlice) -> &[Endpoint] {
    slice.endpoints.as_deref().unwrap_or_default()
}

fn ports_of(slice: &EndpointSlice) -> &[EndpointPort] {
    slice.ports.as_deref().unwrap_or_default()
}

struct Bin {
    slice: Arc<EndpointSlice>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

/// The slices of one group and the endpoints that are in none yet.
struct Bins {
    bins: Vec<Bin>,
    rest: Vec<Endpoint>,
    new: Vec<Vec<Endpoint>>,
}

impl Bins {
    /// Leaves every endpoint in the slice where it is.
    fn sort(common: &Common, group: &Group, existing: Vec<Arc<EndpointSlice>>) -> Bins {
        let mut wanted: HashMap<Identity, &Endpoint> = group.endpoints.iter().map(|e| (identity(e), e)).collect();
        let mut bins = Vec::with_capacity(existing.len());
        for slice in existing {
            let seen = endpoints_of(&slice);
            let kept: Vec<Endpoint> = seen.iter().filter_map(|e| wanted.remove(&identity(e)).cloned()).collect();
            let changed = kept != seen || differs(common, &slice);
            bins.push(Bin { slice, endpoints: kept, changed });
        }
        // In the order given, so that the outcome does not depend on hashing.
        let rest = group.endpoints.iter().filter(|e| wanted.remove(&identity(e)).is_some()).cloned().collect();
        Bins { bins, rest, new: vec![] }
    }

    /// First into slices that are written anyway, then into one other slice if all fit, else into new ones.
    fn fill(&mut self) {
        self.bins.sort_by_key(|bin| std::cmp::Reverse(bin.endpoints.len()));
        for bin in self.bins.iter_mut().filter(|bin| bin.changed) {
            let room = MAX_ENDPOINTS.saturating_sub(bin.endpoints.len()).min(self.rest.len());
            bin.endpoints.extend(self.rest.drain(..room));
        }
        while self.rest.len() >= MAX_ENDPOINTS {
            self.new.push(self.rest.drain(..MAX_ENDPOINTS).collect());
        }
        if self.rest.is_empty() {
            return;
        }
        let rest = std::mem::take(&mut self.rest);
        // The fullest that takes them all.
        let fits = |bin: &&mut Bin| !bin.changed && bin.endpoints.len() + rest.len() <= MAX_ENDPOINTS;
        match self.bins.iter_mut().find(fits) {
            Some(bin) => {
                bin.endpoints.extend(rest);
                bin.changed = true;
            }
            None => self.new.push(rest),
        }
    }

    /// Returns how many slices the group has then.
    fn write(self, common: &Common, family: Family, ports: &[EndpointPort], writes: &mut Writes) -> usize {
        let mut slices = self.new.len();
        writes.create.extend(self.new.into_iter().map(|endpoints| new_slice(common, family, ports, endpoints)));
        for bin in self.bins {
            if bin.endpoints.is_empty() {
                writes.delete.push(bin.slice);
                continue;
            }
            slices += 1;
            if bin.changed {
                writes.update.push(rewritten(common, &bin.slice, bin.endpoints));
            }
        }
        slices
    }
}

/// The trigger time is not news by itself; other annotations and the labels are.
fn differs(common: &Common, slice: &EndpointSlice) -> bool {
    let meta = &slice.metadata;
    let annotated =
        common.annotations.iter().filter(|(name, _)| *name != TRIGGER_TIME).all(|(name, value)| {
            meta.annotations.as_ref().and_then(|annotations| annotations.get(name)) == Some(value)
        });
    meta.labels.as_ref() != Some(&common.labels) || !annotated
}

fn annotations(common: &Common, old: Option<&BTreeMap<String, String>>) -> Option<BTreeMap<String, String>> {
    let mut annotations = old.cloned().unwrap_or_default();
    annotations.remove(TRIGGER_TIME);
    annotations.extend(common.annotations.clone());
    Some(annotations).filter(|annotations| !annotations.is_empty())
}

fn rewritten(common: &Common, slice: &EndpointSlice, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut slice = slice.clone();
    slice.metadata.labels = Some(common.labels.clone());
    slice.metadata.annotations = annotations(common, slice.metadata.annotations.as_ref());
    slice.endpoints = Some(endpoints);
    slice
}

fn new_slice(common: &Common, family: Family, ports: &[EndpointPort], endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", common.service)),
            namespace: Some(common.namespace.clone()),
            labels: Some(common.labels.clone()),
            annotations: annotations(common, None),
            owner_references: Some(vec![common.owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: family.name().to_owned(),
        ports: Some(ports.to_vec()),
        endpoints: Some(endpoints),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn common() -> Common {
        Common {
            namespace: "ns".into(),
            service: "web".into(),
            labels: BTreeMap::from([(SERVICE_NAME.into(), "web".into())]),
            annotations: BTreeMap::from([(TRIGGER_TIME.into(), "t".into())]),
            owner: OwnerReference::default(),
        }
    }

    fn endpoint(number: usize) -> Endpoint {
        Endpoint { addresses: vec![format!("10.0.{}.{}", number / 256, number % 256)], ..Endpoint::default() }
    }

    fn group(port: i32, endpoints: impl IntoIterator<Item = usize>) -> Group {
        let port = EndpointPort { port: Some(port), ..EndpointPort::default() };
        Group { ports: vec![port], endpoints: endpoints.into_iter().map(endpoint).collect() }
    }

    /// Applies `wanted` to the slices as a server would, naming new ones by a counter.
    fn apply(slices: &mut Vec<Arc<EndpointSlice>>, groups: Vec<Group>) -> Writes {
        let writes = pack(&common(), &BTreeMap::from([(Family::IPv4, groups)]), slices);
        slices.retain(|slice| !writes.delete.iter().any(|gone| Arc::ptr_eq(gone, slice)));
        for update in &writes.update {
            let slot = slices.iter_mut().find(|slice| slice.metadata.name == update.metadata.name).expect("exists");
            *slot = Arc::new(update.clone());
        }
        for new in &writes.create {
            let mut new = new.clone();
            new.metadata.name = Some(format!(
                "web-{}",
                (0..).find(|n| !slices.iter().any(|s| s.metadata.name == Some(format!("web-{n}")))).expect("free")
            ));
            slices.push(Arc::new(new));
        }
        writes
    }

    fn summary(writes: &Writes) -> (usize, usize, usize) {
        (writes.create.len(), writes.update.len(), writes.delete.len())
    }

    #[test]
    fn few_writes_for_small_changes() {
        let mut slices = vec![];
        assert_eq!(summary(&apply(&mut slices, vec![])), (1, 0, 0), "an empty slice says that there are none");
        assert_eq!(summary(&apply(&mut slices, vec![])), (0, 0, 0));
        assert_eq!(summary(&apply(&mut slices, vec![group(80, 0..250)])), (3, 0, 1));
        assert_eq!(summary(&apply(&mut slices, vec![group(80, 0..250)])), (0, 0, 0));
        assert_eq!(summary(&apply(&mut slices, vec![group(80, 0..251)])), (0, 1, 0), "into the one with room");
        assert_eq!(summary(&apply(&mut slices, vec![group(80, 10..251)])), (0, 1, 0));
        assert_eq!(summary(&apply(&mut slices, vec![group(80, 100..251)])), (0, 0, 1));
        assert_eq!(summary(&apply(&mut slices, vec![group(81, 0..5)])), (1, 0, 2));
        assert_eq!(summary(&apply(&mut slices, vec![])), (1, 0, 1));
    }

    proptest! {
        /// Whatever was there: afterwards every endpoint is in exactly one slice with its ports, none is over-full, and
        /// a second pass changes nothing.
        #[test]
        fn packing_is_complete_bounded_and_stable(steps in proptest::collection::vec(
            proptest::collection::vec((80..82i32, proptest::collection::btree_set(0..320usize, 0..260)), 0..3), 1..5)) {
            let mut slices = vec![];
            for step in steps {
                let by_port: BTreeMap<i32, _> = step.into_iter().collect();
                let groups: Vec<Group> = by_port.iter().map(|(port, set)| group(*port, set.iter().copied())).collect();
                apply(&mut slices, groups.clone());
                prop_assert!(slices.iter().all(|slice| endpoints_of(slice).len() <= MAX_ENDPOINTS));
                for wanted in &groups {
                    let mut found: Vec<_> = slices.iter().filter(|s| ports_of(s) == wanted.ports).flat_map(|s| endpoints_of(s)).map(|e| e.addresses.clone()).collect();
                    let mut expected: Vec<_> = wanted.endpoints.iter().map(|e| e.addresses.clone()).collect();
                    found.sort();
                    expected.sort();
                    prop_assert_eq!(found, expected);
                }
                prop_assert_eq!(summary(&apply(&mut slices, groups)), (0, 0, 0));
            }
        }
    }
}
