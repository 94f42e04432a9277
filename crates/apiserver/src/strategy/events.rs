//! Events, in both their APIs: weakly durable, never counted by generation, created by PUT as well.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, meta};
use serde_json::json;

use super::{Context, Family, Part, Strategy};

pub fn strategies() -> Family {
    let events: Arc<dyn Strategy> = Arc::new(Events);
    vec![("", "events", events.clone()), ("events.k8s.io", "events", events)]
}

struct Events;

impl Strategy for Events {
    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        let (field, about) = match object.get("involvedObject") {
            Some(about) => ("involvedObject", about),
            None => ("regarding", object.get("regarding").unwrap_or(&Value::Null)),
        };
        let namespace = meta::str_at(about, &["namespace"]);
        let own = meta::namespace(object);
        // An event about a cluster-scoped object lives in `default`.
        let fits = namespace == own || (namespace.is_empty() && matches!(own, "default" | "kube-system"));
        if old.is_none() && !fits {
            let path = Path::new(field).child("namespace");
            errors.push(Error::invalid(&path, &json!(namespace), "does not match event.namespace"));
        }
        errors
    }
}
