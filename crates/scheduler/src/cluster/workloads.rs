//! Which selectors speak for a pod: those of the services in front of it and of the controller that made it. They say what
//! to spread by default.

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::pod::Class;
use crate::selector::{LabelMatch, Labels};

#[derive(Default)]
pub struct Workloads {
    /// Selectors by namespace and name.
    services: HashMap<String, HashMap<String, Labels>>,
    /// Selectors by kind, namespace and name.
    controllers: HashMap<(&'static str, String, String), LabelMatch>,
}

impl Workloads {
    pub fn set_service(&mut self, namespace: &str, name: &str, selector: Option<Labels>) {
        let services = self.services.entry(namespace.to_owned()).or_default();
        match selector.filter(|selector| !selector.is_empty()) {
            Some(selector) => _ = services.insert(name.to_owned(), selector),
            None => _ = services.remove(name),
        }
    }

    pub fn set_controller(
        &mut self,
        kind: &'static str,
        namespace: &str,
        name: &str,
        selector: Option<&LabelSelector>,
    ) {
        let key = (kind, namespace.to_owned(), name.to_owned());
        match selector {
            Some(selector) => _ = self.controllers.insert(key, LabelMatch::new(Some(selector))),
            None => _ = self.controllers.remove(&key),
        }
    }

    /// What a pod is spread by if it says nothing itself; none if nothing speaks for it.
    pub fn default_selector(&self, class: &Class) -> Option<LabelMatch> {
        let mut labels = Labels::new();
        for selector in self.services.get(&class.namespace).into_iter().flat_map(HashMap::values) {
            if selector.iter().all(|(key, value)| class.labels.get(key) == Some(value)) {
                labels.extend(selector.clone());
            }
        }
        let mut selector = LabelMatch::of_labels(&labels);
        if let Some(owner) = &class.owner {
            let kind = match owner.kind.as_str() {
                "ReplicaSet" => "ReplicaSet",
                "ReplicationController" => "ReplicationController",
                "StatefulSet" => "StatefulSet",
                _ => "",
            };
            let key = (kind, class.namespace.clone(), owner.name.clone());
            if let Some(controller) = self.controllers.get(&key) {
                selector.and(controller.clone());
            }
        }
        (!selector.is_empty()).then_some(selector)
    }
}
