//! Nodes.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList};
use apimachinery::status::Result;
use apimachinery::{Value, meta};

use super::common::path_of;
use super::{Context, Family, Part, Strategy};

pub fn strategies() -> Family {
    vec![("", "nodes", Arc::new(Nodes))]
}

struct Nodes;

impl Strategy for Nodes {
    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        // Set once, by the node or the address controller: pods have addresses from it.
        for field in ["podCIDR", "podCIDRs", "providerID"] {
            let path = ["spec", field];
            let before = old.and_then(|old| meta::at(old, &path));
            if before.is_some() && meta::at(object, &path) != before {
                let what = if field == "providerID" { field } else { "podCIDR" };
                let why = format!("node updates may not change {what} except from \"\" to valid");
                errors.push(Error::forbidden(&path_of(&path), &why));
            }
        }
        errors
    }

    fn connect(&self, ask: &super::connect::Ask<'_>) -> Result<super::connect::Connection> {
        super::connect::node(ask)
    }
}
