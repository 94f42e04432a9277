//! Rules over the fields of one small object, which hold wherever an object of that type stands: in a pod, in a template, in a list.

use serde_json::{Map, Value, json};

use super::{Place, Step};
use crate::field::{Error, ErrorList, Path};
use crate::names;
use crate::quantity::Quantity;
use crate::schema::Compound;

const VOLUME_SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "flocker",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "storageos",
    "portworxVolume",
    "scaleIO",
    "projected",
    "csi",
    "ephemeral",
    "image",
];

/// Checks an object that is there; `place` is its own.
pub fn check(compound: Compound, map: &Map<String, Value>, place: &Place<'_>, errors: &mut ErrorList) {
    let mut out = Findings { map, place, errors };
    match compound {
        Compound::EnvVar => out.env_var(),
        Compound::IngressBackend => out.ingress_backend(),
        Compound::Lifecycle => {
            out.union(&["exec", "httpGet", "tcpSocket", "sleep"], Some("must specify a handler type"), "handler")
        }
        Compound::NetworkPolicyPeer => out.network_policy_peer(),
        Compound::NodeField => out.node_field(),
        Compound::NodeSelector => out.node_selector(),
        Compound::PolicyRule => out.policy_rule(),
        Compound::Probe => {
            out.union(&["exec", "httpGet", "tcpSocket", "grpc"], Some("must specify a handler type"), "handler")
        }
        Compound::Resources => out.resources(),
        Compound::ServiceBackendPort => out.service_backend_port(),
        Compound::Subject => out.subject(),
        Compound::Toleration => out.toleration(),
        // A pod's volume without a source is an emptyDir.
        Compound::Volume => out.union(&VOLUME_SOURCES, None, "volume"),
    }
}

struct Findings<'a> {
    map: &'a Map<String, Value>,
    place: &'a Place<'a>,
    errors: &'a mut ErrorList,
}

impl<'a> Findings<'a> {
    fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|v| !v.is_null())
    }

    fn text(&self, key: &str) -> &'a str {
        self.map.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn list(&self, key: &str) -> &'a [Value] {
        self.map.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    fn at(&self, key: &str) -> Path {
        self.place.step(Step::Field(key)).path()
    }

    /// At most one member, and one at least if `none` says so.
    fn union(&mut self, members: &[&'static str], none: Option<&str>, what: &str) {
        let given: Vec<&str> = members.iter().filter(|key| self.has(key)).copied().collect();
        if given.is_empty() {
            self.errors.extend(none.map(|text| Error::required(&self.place.path(), text)));
        }
        let detail = format!("may not specify more than 1 {what} type");
        for key in given.into_iter().skip(1) {
            self.errors.push(Error::forbidden(&self.at(key), &detail));
        }
    }

    fn env_var(&mut self) {
        let Some(Value::Object(source)) = self.map.get("valueFrom") else { return };
        let at = self.at("valueFrom");
        let given = source.values().filter(|v| !v.is_null()).count();
        let detail = match given {
            0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            _ if !self.text("value").is_empty() => "may not be specified when `value` is not empty",
            1 => return,
            _ => "may not have more than one field specified at a time",
        };
        self.errors.push(Error::invalid(&at, &json!(""), detail));
    }

    fn toleration(&mut self) {
        let (operator, effect) = (self.text("operator"), self.text("effect"));
        if self.text("key").is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            self.errors.push(Error::invalid(&self.at("operator"), &json!(operator), detail));
        }
        if self.has("tolerationSeconds") && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            self.errors.push(Error::invalid(&self.at("effect"), &json!(effect), detail));
        }
        let value = self.text("value");
        if matches!(operator, "" | "Equal") {
            let messages = names::label_value(value);
            if !messages.is_empty() {
                self.errors.push(Error::invalid(&self.at("operator"), &json!(value), &messages.join(";")));
            }
        } else if operator == "Exists" && !value.is_empty() {
            let detail = "value must be empty when `operator` is 'Exists'";
            self.errors.push(Error::invalid(&self.at("operator"), &Value::Object(self.map.clone()), detail));
        }
    }

    /// A requirement on a node's labels.
    fn node_selector(&mut self) {
        let values = self.list("values");
        let at = self.at("values");
        match self.text("operator") {
            "In" | "NotIn" if values.is_empty() => {
                self.errors.push(Error::required(&at, "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                self.errors.push(Error::forbidden(&at, detail));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                self.errors.push(Error::required(&at, detail));
            }
            _ => {}
        }
    }

    /// A requirement on a node's fields: only its name can be asked for.
    fn node_field(&mut self) {
        if matches!(self.text("operator"), "In" | "NotIn") {
            if self.list("values").len() != 1 {
                let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                self.errors.push(Error::required(&self.at("values"), detail));
            }
        } else {
            let operator = json!(self.text("operator"));
            self.errors.push(Error::invalid(&self.at("operator"), &operator, "not a valid selector operator"));
        }
        if self.text("key") != "metadata.name" {
            let key = json!(self.text("key"));
            self.errors.push(Error::invalid(&self.at("key"), &key, "not a valid field selector key"));
        }
    }

    /// Requests within limits; what cannot be overcommitted, equal to them.
    fn resources(&mut self) {
        let none = Map::new();
        let amounts = |key: &str| self.map.get(key).and_then(Value::as_object).unwrap_or(&none);
        let (requests, limits) = (amounts("requests"), amounts("limits"));
        let mut found = Vec::new();
        for (name, request) in requests {
            let quantity = |value: &Value| Quantity::from_value(value).ok();
            let Some(amount) = quantity(request) else { continue };
            let fixed = !overcommits(name);
            let Some((limit, text)) =
                limits.get(name).and_then(|v| Some((quantity(v)?, v.as_str().unwrap_or_default())))
            else {
                if fixed {
                    let detail = "Limit must be set for non overcommitable resources";
                    found.push(Error::required(&self.at("limits"), detail));
                }
                continue;
            };
            if fixed && amount != limit {
                let detail = format!("must be equal to {name} limit of {text}");
                found.push(Error::invalid(&self.at("requests"), request, &detail));
            } else if amount > limit {
                let detail = format!("must be less than or equal to {name} limit of {text}");
                found.push(Error::invalid(&self.at("requests"), request, &detail));
            }
        }
        self.errors.extend(found);
    }

    fn ingress_backend(&mut self) {
        let detail = match (self.has("service"), self.has("resource")) {
            (true, true) => "cannot set both resource and service backends",
            (false, false) => "resource or service backend is required",
            _ => return,
        };
        self.errors.push(Error::invalid(&self.place.path(), &json!(""), detail));
    }

    fn service_backend_port(&mut self) {
        let number = self.map.get("number").and_then(Value::as_i64).unwrap_or(0);
        match (self.text("name").is_empty(), number) {
            (true, 0) => {
                self.errors.push(Error::required(&self.place.path(), "port name or number is required"));
            }
            (false, number) if number != 0 => {
                let detail = "cannot set both port name & port number";
                self.errors.push(Error::invalid(&self.place.path(), &json!(""), detail));
            }
            _ => {}
        }
    }

    fn network_policy_peer(&mut self) {
        let others = self.has("podSelector") || self.has("namespaceSelector");
        match (self.has("ipBlock"), others) {
            (false, false) => self.errors.push(Error::required(&self.place.path(), "must specify a peer")),
            (true, true) => {
                let detail = "may not specify both ipBlock and another peer";
                self.errors.push(Error::forbidden(&self.place.path(), detail));
            }
            _ => {}
        }
    }

    fn policy_rule(&mut self) {
        let (groups, resources) = (self.list("apiGroups"), self.list("resources"));
        let urls = self.list("nonResourceURLs");
        if !urls.is_empty() {
            if !groups.is_empty() || !resources.is_empty() || !self.list("resourceNames").is_empty() {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                self.errors.push(Error::invalid(&self.at("nonResourceURLs"), &json!(urls), detail));
            }
            return;
        }
        if groups.is_empty() {
            let detail = "resource rules must supply at least one api group";
            self.errors.push(Error::required(&self.at("apiGroups"), detail));
        }
        if resources.is_empty() {
            let detail = "resource rules must supply at least one resource";
            self.errors.push(Error::required(&self.at("resources"), detail));
        }
    }

    fn subject(&mut self) {
        let group = self.text("apiGroup");
        let wanted = match self.text("kind") {
            "ServiceAccount" => {
                if self.text("namespace").is_empty() {
                    self.errors.push(Error::required(&self.at("namespace"), ""));
                }
                ""
            }
            "User" | "Group" => "rbac.authorization.k8s.io",
            _ => return,
        };
        if group != wanted {
            let supported: &[&str] = if wanted.is_empty() { &["\"\""] } else { &[wanted] };
            self.errors.push(Error::not_supported(&self.at("apiGroup"), &json!(group), supported));
        }
    }
}

/// Resources of which more can be promised than there is: upstream's `IsOvercommitAllowed`.
fn overcommits(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    native && !name.starts_with("hugepages-")
}
