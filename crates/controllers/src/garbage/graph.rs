//! Who owns whom, by UID, from metadata alone; and which objects a change puts in question. Pure.
//!
//! The graph only raises suspicion. Whether something is deleted is decided on what the server says at that moment.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub type Uid = Arc<str>;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// Where an object is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    /// Empty for cluster scope, or not known to be otherwise.
    pub namespace: String,
    pub name: String,
}

/// What the graph knows of one object.
#[derive(Clone, Debug)]
pub struct Node {
    pub identity: Identity,
    pub owners: Vec<OwnerReference>,
    pub dependents: HashSet<Uid>,
    /// Named as an owner, never seen.
    pub is_virtual: bool,
    pub deleting: bool,
    /// Being deleted in the foreground: dependents first.
    pub foreground: bool,
    /// Being deleted, and its dependents are to be set free.
    pub orphaning: bool,
}

/// An object to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Suspect {
    /// It may have to be deleted, or its own foreground deletion completed.
    Delete(Uid),
    /// Its dependents are to be set free.
    Orphan(Uid),
    /// It names an owner in another namespace, which upstream tells by an event.
    Misplaced(Uid),
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
}

fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|present| present == finalizer)
}

fn blocks(reference: &OwnerReference) -> bool {
    reference.block_owner_deletion == Some(true)
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The dependents of `uid` that hold up its foreground deletion.
    pub fn blocking_dependents(&self, uid: &str) -> Vec<Uid> {
        let Some(node) = self.nodes.get(uid) else { return vec![] };
        let blocking = node.dependents.iter().filter(|dependent| {
            self.nodes.get(*dependent).is_some_and(|d| d.owners.iter().any(|o| *o.uid == *uid && blocks(o)))
        });
        blocking.cloned().collect()
    }

    /// Notes an object as it is now.
    pub fn observe(&mut self, identity: Identity, meta: &ObjectMeta) -> Vec<Suspect> {
        let Some(uid) = meta.uid.as_deref() else { return vec![] };
        let uid: Uid = self.nodes.get_key_value(uid).map_or_else(|| Uid::from(uid), |(known, _)| known.clone());
        let owners = meta.owner_references.clone().unwrap_or_default();
        let deleting = meta.deletion_timestamp.is_some();
        let mut suspects = Vec::new();
        let node = self.nodes.entry(uid.clone()).or_insert_with(|| Node::new(identity.clone()));
        node.is_virtual = false;
        node.identity = identity;
        node.deleting = deleting;
        let old_owners = std::mem::replace(&mut node.owners, owners.clone());
        let foreground = deleting && has_finalizer(meta, FOREGROUND);
        let orphaning = deleting && has_finalizer(meta, ORPHAN);
        if foreground && !node.foreground {
            suspects.extend(node.dependents.iter().cloned().map(Suspect::Delete));
            suspects.push(Suspect::Delete(uid.clone()));
        }
        if orphaning && !node.orphaning {
            suspects.push(Suspect::Orphan(uid.clone()));
        }
        node.foreground = foreground;
        node.orphaning = orphaning;
        self.relink(&uid, &old_owners, &owners, &mut suspects);
        suspects
    }

    /// Follows a change of an object's owners.
    fn relink(&mut self, uid: &Uid, old: &[OwnerReference], new: &[OwnerReference], suspects: &mut Vec<Suspect>) {
        for owner in old {
            let still = new.iter().find(|reference| reference.uid == owner.uid);
            let unblocked = blocks(owner) && still.is_none_or(|still| !blocks(still));
            if unblocked && self.nodes.get(&*owner.uid).is_some_and(|node| node.foreground) {
                suspects.push(Suspect::Delete(Uid::from(&*owner.uid)));
            }
            if still.is_none() {
                self.unlink(uid, &owner.uid);
            }
        }
        let added: Vec<&OwnerReference> = new.iter().filter(|o| !old.iter().any(|known| known.uid == o.uid)).collect();
        for owner in added {
            self.link(uid, owner, suspects);
        }
    }

    fn link(&mut self, uid: &Uid, reference: &OwnerReference, suspects: &mut Vec<Suspect>) {
        let namespace = self.nodes.get(uid).map(|node| node.identity.namespace.clone()).unwrap_or_default();
        if let Some(owner) = self.nodes.get_mut(&*reference.uid) {
            owner.dependents.insert(uid.clone());
            let elsewhere = !owner.identity.namespace.is_empty() && owner.identity.namespace != namespace;
            let misnamed = *owner.identity.kind != *reference.kind || owner.identity.name != reference.name;
            if !owner.is_virtual && elsewhere {
                suspects.push(Suspect::Misplaced(uid.clone()));
            }
            if owner.foreground || elsewhere || misnamed {
                suspects.push(Suspect::Delete(uid.clone()));
            }
            return;
        }
        // Seen later, or never: the server is asked whether it exists.
        let identity = Identity {
            api_version: Arc::from(&*reference.api_version),
            kind: Arc::from(&*reference.kind),
            namespace,
            name: reference.name.clone(),
        };
        let mut owner = Node::new(identity);
        owner.dependents.insert(uid.clone());
        let owner_uid = Uid::from(&*reference.uid);
        self.nodes.insert(owner_uid.clone(), owner);
        suspects.push(Suspect::Delete(owner_uid));
    }

    fn unlink(&mut self, uid: &str, owner_uid: &str) {
        if let Some(owner) = self.nodes.get_mut(owner_uid) {
            owner.dependents.remove(uid);
            if owner.is_virtual && owner.dependents.is_empty() {
                self.nodes.remove(owner_uid);
            }
        }
    }

    /// Notes that an object is gone.
    pub fn vanish(&mut self, uid: &str) -> Vec<Suspect> {
        let Some(node) = self.nodes.remove(uid) else { return vec![] };
        let mut suspects: Vec<Suspect> = node.dependents.iter().cloned().map(Suspect::Delete).collect();
        for owner in &node.owners {
            if self.nodes.get(&*owner.uid).is_some_and(|owner| owner.foreground) {
                suspects.push(Suspect::Delete(Uid::from(&*owner.uid)));
            }
            self.unlink(uid, &owner.uid);
        }
        suspects
    }
}

impl Node {
    fn new(identity: Identity) -> Self {
        Node {
            identity,
            owners: vec![],
            dependents: HashSet::new(),
            is_virtual: true,
            deleting: false,
            foreground: false,
            orphaning: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::fixture::{ago, yaml};

    #[derive(Deserialize)]
    struct Line {
        uid: String,
        #[serde(default)]
        owners: Vec<String>,
        #[serde(default)]
        blocking: bool,
        #[serde(default)]
        finalizers: Vec<String>,
        #[serde(default)]
        deleting: bool,
        namespace: Option<String>,
    }

    fn see(graph: &mut Graph, line: &str) -> Vec<String> {
        let line: Line = yaml(line);
        let identity = Identity {
            api_version: "v1".into(),
            kind: "Thing".into(),
            namespace: line.namespace.unwrap_or_else(|| "ns".into()),
            name: line.uid.clone(),
        };
        let reference = |uid: &String| OwnerReference {
            api_version: "v1".into(),
            kind: "Thing".into(),
            name: uid.clone(),
            uid: uid.clone(),
            block_owner_deletion: Some(line.blocking),
            controller: None,
        };
        let meta = ObjectMeta {
            owner_references: Some(line.owners.iter().map(reference).collect()),
            uid: Some(line.uid.clone()),
            finalizers: Some(line.finalizers),
            deletion_timestamp: line.deleting.then(|| ago(1)),
            ..ObjectMeta::default()
        };
        shown(graph.observe(identity, &meta))
    }

    fn shown(suspects: Vec<Suspect>) -> Vec<String> {
        let mut shown: Vec<String> = suspects
            .iter()
            .map(|suspect| match suspect {
                Suspect::Delete(uid) => format!("delete {uid}"),
                Suspect::Orphan(uid) => format!("orphan {uid}"),
                Suspect::Misplaced(uid) => format!("misplaced {uid}"),
            })
            .collect();
        shown.sort();
        shown
    }

    #[test]
    fn an_owner_seen_late_is_suspected_until_it_is_seen() {
        let mut graph = Graph::default();
        assert_eq!(see(&mut graph, "{ uid: child, owners: [parent] }"), ["delete parent"]);
        assert!(graph.get("parent").is_some_and(|node| node.is_virtual));
        assert!(see(&mut graph, "{ uid: child2, owners: [parent] }").is_empty());
        assert!(see(&mut graph, "{ uid: parent }").is_empty());
        assert_eq!(shown(graph.vanish("parent")), ["delete child", "delete child2"]);
    }

    #[test]
    fn a_virtual_owner_goes_with_its_last_dependent() {
        let mut graph = Graph::default();
        see(&mut graph, "{ uid: a, owners: [ghost] }");
        see(&mut graph, "{ uid: b, owners: [ghost] }");
        see(&mut graph, "{ uid: a }");
        assert_eq!(graph.nodes.len(), 3);
        graph.vanish("b");
        assert_eq!(graph.nodes.len(), 1);
    }

    #[test]
    fn foreground_deletion_suspects_dependents_and_waits_for_blocking_ones() {
        let mut graph = Graph::default();
        see(&mut graph, "{ uid: p }");
        see(&mut graph, "{ uid: a, owners: [p], blocking: true }");
        see(&mut graph, "{ uid: b, owners: [p] }");
        let deleting = "{ uid: p, deleting: true, finalizers: [foregroundDeletion] }";
        assert_eq!(see(&mut graph, deleting), ["delete a", "delete b", "delete p"]);
        assert!(see(&mut graph, deleting).is_empty(), "only once");
        assert_eq!(graph.blocking_dependents("p"), [Uid::from("a")]);
        assert_eq!(see(&mut graph, "{ uid: a, owners: [p] }"), ["delete p"], "no longer blocks");
        assert_eq!(shown(graph.vanish("b")), ["delete p"]);
        assert_eq!(see(&mut graph, "{ uid: late, owners: [p] }"), ["delete late"]);
    }

    #[test]
    fn orphaning_is_told_once() {
        let mut graph = Graph::default();
        see(&mut graph, "{ uid: p }");
        let deleting = "{ uid: p, deleting: true, finalizers: [orphan] }";
        assert_eq!(see(&mut graph, deleting), ["orphan p"]);
        assert!(see(&mut graph, deleting).is_empty());
    }

    #[test]
    fn an_owner_in_another_namespace_is_no_owner() {
        let mut graph = Graph::default();
        see(&mut graph, "{ uid: p, namespace: other }");
        assert_eq!(see(&mut graph, "{ uid: a, owners: [p] }"), ["delete a", "misplaced a"]);
        see(&mut graph, "{ uid: global, namespace: '' }");
        assert!(see(&mut graph, "{ uid: b, owners: [global] }").is_empty(), "cluster scope owns anywhere");
    }
}
