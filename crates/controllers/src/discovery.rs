//! What resources the server has, by aggregated discovery: for controllers that treat all of them alike.

use std::collections::HashMap;
use std::sync::Arc;

use kube::api::{Api, ApiResource, DynamicObject};
use kube::client::{APIGroupDiscovery, APIResourceDiscovery};

use crate::error::Result;

/// One resource in one version.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub api: ApiResource,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    /// It has the subresource `scale`.
    pub scalable: bool,
}

impl Resource {
    pub fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|offered| offered == verb))
    }

    /// `plural.group`, as upstream names a group resource (`pods.`, `deployments.apps`).
    pub fn name(&self) -> String {
        format!("{}.{}", self.api.plural, self.api.group)
    }

    /// Where the objects of a namespace are, or all of them.
    pub fn path(&self, namespace: &str) -> String {
        let root = if self.api.group.is_empty() { "/api" } else { "/apis" };
        let home = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
        format!("{root}/{}{home}/{}", self.api.api_version, self.api.plural)
    }

    pub fn in_namespace(&self, client: &kube::Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced && !namespace.is_empty() {
            Api::namespaced_with(client.clone(), namespace, &self.api)
        } else {
            Api::all_with(client.clone(), &self.api)
        }
    }
}

/// All that was discovered.
#[derive(Clone, Debug, Default)]
pub struct Discovered {
    /// Each resource once, in its group's preferred version.
    pub preferred: Vec<Arc<Resource>>,
    /// Every version, by `apiVersion` and kind.
    pub by_kind: HashMap<(String, String), Arc<Resource>>,
    /// Group versions whose server did not answer.
    pub stale: Vec<String>,
}

impl Discovered {
    pub fn of_kind(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        self.by_kind.get(&(api_version.to_owned(), kind.to_owned())).cloned()
    }
}

/// Asks the server. Groups whose own server is away are told in `stale`, not as an error.
pub async fn discover(client: &kube::Client) -> Result<Discovered> {
    let core = client.list_core_api_versions_aggregated().await?;
    let groups = client.list_api_groups_aggregated().await?;
    Ok(collect(core.items.iter().chain(&groups.items)))
}

fn collect<'a>(groups: impl Iterator<Item = &'a APIGroupDiscovery>) -> Discovered {
    let mut found = Discovered::default();
    for group in groups {
        let name = group.metadata.as_ref().and_then(|meta| meta.name.clone()).unwrap_or_default();
        let mut seen: Vec<&str> = Vec::new();
        for version in &group.versions {
            let label = version.version.clone().unwrap_or_default();
            let api_version = if name.is_empty() { label.clone() } else { format!("{name}/{label}") };
            if version.freshness.as_deref() == Some("Stale") {
                found.stale.push(api_version.clone());
            }
            for entry in &version.resources {
                let Some(resource) = resource(&name, &label, &api_version, entry) else { continue };
                let resource = Arc::new(resource);
                found.by_kind.insert((api_version.clone(), resource.api.kind.clone()), resource.clone());
                let plural = entry.resource.as_deref().unwrap_or_default();
                if !seen.contains(&plural) {
                    seen.push(plural);
                    found.preferred.push(resource);
                }
            }
        }
    }
    found
}

/// None for an entry that is only the parent of subresources.
fn resource(group: &str, version: &str, api_version: &str, entry: &APIResourceDiscovery) -> Option<Resource> {
    let kind = entry.response_kind.as_ref()?.kind.clone().filter(|kind| !kind.is_empty())?;
    Some(Resource {
        api: ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.to_owned(),
            kind,
            plural: entry.resource.clone()?,
        },
        namespaced: entry.scope.as_deref() == Some("Namespaced"),
        verbs: entry.verbs.clone(),
        scalable: entry.subresources.iter().any(|below| below.subresource.as_deref() == Some("scale")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    #[test]
    fn a_resource_is_taken_in_the_first_version_that_has_it() {
        let groups: Vec<APIGroupDiscovery> = yaml(
            "- metadata: { name: apps }
  versions:
  - { version: v1, resources: [{ resource: deployments, responseKind: { kind: Deployment }, scope: Namespaced, verbs: [get, list] }] }
  - { version: v1beta1, freshness: Stale, resources: [{ resource: deployments, responseKind: { kind: Deployment }, scope: Namespaced, verbs: [get] }, { resource: old, responseKind: { kind: Old }, scope: Cluster, verbs: [get] }] }",
        );
        let found = collect(groups.iter());
        let preferred: Vec<String> =
            found.preferred.iter().map(|r| format!("{} {} {}", r.name(), r.api.version, r.namespaced)).collect();
        assert_eq!(preferred, ["deployments.apps v1 true", "old.apps v1beta1 false"]);
        assert!(found.of_kind("apps/v1beta1", "Deployment").is_some_and(|r| !r.can(&["get", "list"])));
        assert_eq!(found.stale, ["apps/v1beta1"]);
    }
}
