//! A new node takes no pods before it has said that it is ready.

use apimachinery::status::Result;
use apimachinery::{Value, meta};
use serde_json::json;

use super::pod_spec::items_mut;
use super::{Operation, Plugin, Request};

pub struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        if !request.is("", "nodes", "") {
            return Ok(());
        }
        let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let same =
            |other: &Value| ["key", "effect"].iter().all(|f| meta::str_at(other, &[f]) == meta::str_at(&taint, &[f]));
        let taints = items_mut(request.object, "taints");
        if !taints.iter().any(same) {
            taints.push(taint);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;

    #[test]
    fn a_new_node_is_tainted_once() {
        let cluster = Cluster::new();
        let mut case = Case::create("", "nodes", json!({"metadata": {"name": "n"}}));
        case.admit(&cluster, &TaintNodesByCondition).unwrap();
        case.admit(&cluster, &TaintNodesByCondition).unwrap();
        assert_eq!(
            case.object["spec"]["taints"],
            json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
        );
    }
}
