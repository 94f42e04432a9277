//! Pods stay five minutes on a node that is not ready or cannot be reached, unless they say otherwise.

use apimachinery::status::Result;
use apimachinery::{Value, meta};
use serde_json::json;

use super::pod_spec::{items, items_mut};
use super::{Operation, Plugin, Request};

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        if !request.is("", "pods", "") {
            return Ok(());
        }
        for taint in TAINTS {
            if !items(request.object, "tolerations").any(|toleration| tolerates(toleration, taint)) {
                items_mut(request.object, "tolerations").push(json!({
                    "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
                }));
            }
        }
        Ok(())
    }
}

fn tolerates(toleration: &Value, taint: &str) -> bool {
    let (key, effect) = (meta::str_at(toleration, &["key"]), meta::str_at(toleration, &["effect"]));
    (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;

    #[test]
    fn only_missing_tolerations_are_added() {
        let check = |given: Value, expected: &[&str]| {
            let mut case = Case::create("", "pods", json!({"metadata": {"name": "p"}, "spec": {"tolerations": given}}));
            case.admit(&Cluster::new(), &DefaultTolerationSeconds).unwrap();
            let all = case.object["spec"]["tolerations"].as_array().unwrap();
            let added = all.iter().filter(|t| t["tolerationSeconds"] == SECONDS).map(|t| t["key"].as_str().unwrap());
            assert_eq!(added.collect::<Vec<_>>(), expected, "{given}");
        };
        check(Value::Null, &TAINTS);
        check(json!([{"operator": "Exists"}]), &[]);
        check(json!([{"key": TAINTS[0], "effect": "NoExecute"}]), &TAINTS[1..]);
        check(json!([{"operator": "Exists", "effect": "NoSchedule"}]), &TAINTS);
    }
}
