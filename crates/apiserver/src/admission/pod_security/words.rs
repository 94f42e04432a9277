//! Violations, and the phrases that upstream makes them of.

use std::collections::BTreeSet;
use std::fmt;

use apimachinery::{Value, meta};

use super::super::pod_spec::containers;

/// Printed as `reason (detail)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

impl Violation {
    pub fn new(reason: &str, detail: String) -> Self {
        Violation { reason: reason.to_owned(), detail }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() { f.write_str(&self.reason) } else { write!(f, "{} ({})", self.reason, self.detail) }
    }
}

pub fn plural<'a>(count: usize, one: &'a str, several: &'a str) -> &'a str {
    if count == 1 { one } else { several }
}

/// `"a", "b"`
pub fn quoted<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    items.into_iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(", ")
}

/// Containers that are at fault, by name, and the values by which they are.
#[derive(Default)]
pub struct Faults {
    pub containers: Vec<String>,
    pub values: BTreeSet<String>,
    pub pod: bool,
}

impl Faults {
    /// Asks `values` of every container; a container with any is at fault.
    pub fn of_containers<I: IntoIterator<Item = String>>(pod: &Value, values: impl Fn(&Value) -> I) -> Self {
        let mut faults = Faults::default();
        for container in containers(pod) {
            let mut found = values(container).into_iter().peekable();
            if found.peek().is_some() {
                faults.containers.push(meta::str_at(container, &["name"]).to_owned());
                faults.values.extend(found);
            }
        }
        faults
    }

    /// As [`Faults::of_containers`], where there is nothing to tell but that a container is at fault.
    pub fn where_container(pod: &Value, at_fault: impl Fn(&Value) -> bool) -> Self {
        Self::of_containers(pod, |container| at_fault(container).then(String::new))
    }

    /// Asks `value` of the pod's and of every container's security context.
    pub fn of_contexts(pod: &Value, value: impl Fn(&Value) -> Option<String>) -> Self {
        let mut faults = Self::of_containers(pod, |c| c.get("securityContext").and_then(&value));
        if let Some(found) = meta::at(pod, &["spec", "securityContext"]).and_then(&value) {
            faults.pod = true;
            faults.values.insert(found);
        }
        faults
    }

    pub fn any(&self) -> bool {
        self.pod || !self.containers.is_empty()
    }

    /// `container "a"` or `containers "a", "b"`.
    pub fn containers(&self) -> String {
        let names = quoted(self.containers.iter().map(String::as_str));
        format!("{} {names}", plural(self.containers.len(), "container", "containers"))
    }

    /// `pod and container "a"`: who set a value explicitly.
    pub fn setters(&self) -> String {
        let pod = self.pod.then(|| "pod".to_owned());
        let containers = (!self.containers.is_empty()).then(|| self.containers());
        pod.into_iter().chain(containers).collect::<Vec<_>>().join(" and ")
    }

    pub fn values(&self) -> String {
        quoted(self.values.iter().map(String::as_str))
    }
}
