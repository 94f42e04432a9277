//! Roles and bindings: names as in a URL, and nobody gives away more than they hold.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::status::Result;
use apimachinery::{Value, meta, names};
use serde_json::json;

use super::common::immutable;
use super::{Context, Family, Part, Services, Strategy};
use crate::authz::escalation;

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn strategies(services: &Arc<Services>) -> Family {
    let make = |plural, binding| {
        let strategy: Arc<dyn Strategy> = Arc::new(Rbac { services: services.clone(), binding });
        (GROUP, plural, strategy)
    };
    vec![
        make("roles", false),
        make("clusterroles", false),
        make("rolebindings", true),
        make("clusterrolebindings", true),
    ]
}

struct Rbac {
    services: Arc<Services>,
    binding: bool,
}

impl Strategy for Rbac {
    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if !self.binding {
            return errors;
        }
        if let Some(old) = old
            && object.get("roleRef") != old.get("roleRef")
        {
            immutable(object, old, &["roleRef"], &mut errors);
            if let Some(error) = errors.last_mut() {
                *error = Error::invalid(&Path::new("roleRef"), &object["roleRef"], "cannot change roleRef");
            }
        }
        if meta::str_at(object, &["roleRef", "name"]).is_empty() {
            errors.push(Error::required(&Path::new("roleRef").child("name"), ""));
        }
        let kind = meta::str_at(object, &["roleRef", "kind"]);
        let namespaced = !meta::namespace(object).is_empty();
        let kinds: &[&str] = if namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
        if !kinds.contains(&kind) {
            errors.push(Error::not_supported(&Path::new("roleRef").child("kind"), &json!(kind), kinds));
        }
        errors
    }

    fn authorize(&self, cx: &Context<'_>, object: &Value, old: Option<&Value>) -> Result<()> {
        let check = if self.binding { escalation::check_binding_write } else { escalation::check_role_write };
        check(&self.services.authorizer, cx.user, meta::namespace(object), object, old)
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::path_segment_name(name)
    }
}
