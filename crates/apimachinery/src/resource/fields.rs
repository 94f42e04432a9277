//! Values that field selectors compare, as upstream's `GetAttrs` functions give them: an absent value is its type's zero, printed.

use serde_json::Value;

use super::ResourceRow;
use crate::meta;
use crate::schema::{Scalar, Shape};

impl ResourceRow {
    /// The value that selector field `name` has in `object`; `None` if this kind cannot be selected by it.
    pub fn selected_value(&self, object: &Value, name: &str) -> Option<String> {
        match name {
            "metadata.name" => return Some(meta::name(object).to_owned()),
            "metadata.namespace" if self.is_namespaced() => return Some(meta::namespace(object).to_owned()),
            _ if !self.selectable_fields.iter().any(|field| **field == *name) => return None,
            _ => {}
        }
        let path: Vec<&str> = self.path_of(name, object);
        Some(match meta::at(object, &path) {
            Some(Value::String(text)) => text.clone(),
            Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
            _ => self.zero(&path).to_owned(),
        })
    }

    /// Where the value lies. Two selector fields do not have the name of the object's field.
    fn path_of<'a>(&self, name: &'a str, object: &Value) -> Vec<&'a str> {
        match (&*self.kind, name) {
            ("Job", "status.successful") => vec!["status", "succeeded"],
            ("Event", "source") if meta::str_at(object, &["source", "component"]).is_empty() => {
                vec!["reportingComponent"]
            }
            ("Event", "source") => vec!["source", "component"],
            _ => name.split('.').collect(),
        }
    }

    fn zero(&self, path: &[&str]) -> &'static str {
        let found = path.iter().try_fold(self.root, |ty, name| {
            let object = self.schema.object(ty)?;
            object.field(name).map(|field| field.ty)
        });
        match found.map(|ty| &self.schema.get(ty).shape) {
            Some(Shape::Scalar(Scalar::Bool)) if !self.custom => "false",
            Some(Shape::Scalar(Scalar::Int32 | Scalar::Int64)) if !self.custom => "0",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::resource::builtin;

    #[test]
    fn values_and_their_zeros() {
        let value = |plural: &str, object: serde_json::Value, name: &str| {
            let row = builtin().rows().find(|row| *row.plural == *plural).unwrap();
            row.selected_value(&object, name)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(value("pods", json!({"metadata": {"name": "a"}}), "metadata.name"), some("a"));
        assert_eq!(value("pods", json!({"spec": {"nodeName": "n"}}), "spec.nodeName"), some("n"));
        assert_eq!(value("pods", json!({}), "spec.nodeName"), some(""));
        assert_eq!(value("pods", json!({}), "spec.hostNetwork"), some("false"));
        assert_eq!(value("pods", json!({}), "spec.priority"), None);
        assert_eq!(value("nodes", json!({"spec": {"unschedulable": true}}), "spec.unschedulable"), some("true"));
        assert_eq!(value("nodes", json!({}), "metadata.namespace"), None);
        assert_eq!(value("replicasets", json!({}), "status.replicas"), some("0"));
        assert_eq!(value("jobs", json!({"status": {"succeeded": 2}}), "status.successful"), some("2"));
        assert_eq!(value("events", json!({"source": {"component": "kubelet"}}), "source"), some("kubelet"));
        assert_eq!(value("events", json!({"reportingComponent": "x"}), "source"), some("x"));
    }
}
