//! ClusterRoles that are made of others: the rules of a role with an `aggregationRule` are those of all roles it selects.

use std::collections::BTreeSet;

use apimachinery::selector::LabelSelector;
use apimachinery::{Value, meta};
use tokio_util::sync::CancellationToken;

use super::index::Kind;
use crate::view::View;

/// The ClusterRoles whose computed rules differ from what is stored, with the right rules set. Pure over the view; repeats are
/// harmless. Chains (`view` → `edit` → `admin`) are followed to their end in one call.
pub fn aggregate(view: &View) -> Vec<Value> {
    aggregated(view.list(Kind::ClusterRole.prefix(), "").iter().map(|entry| entry.value.value()).collect())
}

/// As [`aggregate`], of these roles, which are in order of name.
pub(crate) fn aggregated(mut roles: Vec<Value>) -> Vec<Value> {
    let mut changed: BTreeSet<usize> = BTreeSet::new();
    // Every round settles one more link of each chain; roles that select each other settle too, as rules are only gathered.
    for _ in 0..=roles.len() {
        let updates: Vec<(usize, Vec<Value>)> =
            roles.iter().enumerate().filter_map(|(at, role)| Some((at, update(role, &roles)?))).collect();
        if updates.is_empty() {
            break;
        }
        for (at, rules) in updates {
            roles[at]["rules"] = Value::Array(rules);
            changed.insert(at);
        }
    }
    changed.into_iter().map(|at| std::mem::take(&mut roles[at])).collect()
}

/// The rules that `role` should have, if those are not the ones it has.
fn update(role: &Value, roles: &[Value]) -> Option<Vec<Value>> {
    let rules = computed(role, roles)?;
    let current = role.get("rules").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    (current != rules).then_some(rules)
}

/// The rules of every selected role in order of name, repeats dropped; `None` if the role does not aggregate.
fn computed(role: &Value, roles: &[Value]) -> Option<Vec<Value>> {
    let selectors = role.get("aggregationRule")?.get("clusterRoleSelectors")?.as_array()?;
    let mut selected: BTreeSet<usize> = BTreeSet::new();
    for selector in selectors.iter().filter_map(|selector| LabelSelector::from_value(selector).ok()) {
        let matching = roles.iter().enumerate();
        let matching =
            matching.filter(|(_, other)| meta::name(other) != meta::name(role) && selector.matches_object(other));
        selected.extend(matching.map(|(at, _)| at));
    }
    let mut rules: Vec<Value> = Vec::new();
    for rule in selected.iter().filter_map(|at| roles[*at].get("rules")?.as_array()).flatten() {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    Some(rules)
}

/// Calls `write` with every ClusterRole whose rules have to change: at once, and whenever ClusterRoles change, until `shutdown`. A
/// write that lost a race needs no retry: what won it is a change.
pub async fn keep_aggregated<F, W>(view: View, shutdown: CancellationToken, mut write: F)
where
    F: FnMut(Value) -> W,
    W: Future<Output = ()>,
{
    'watching: loop {
        let revision = view.store().revision();
        let Ok(mut watcher) = view.watch(Kind::ClusterRole.prefix(), revision) else { return };
        loop {
            for role in aggregate(&view) {
                write(role).await;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changes = watcher.next() => match changes {
                    Ok(_) => {}
                    Err(store::Error::Compacted { .. }) => continue 'watching,
                    Err(_) => return,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn role(name: &str, label: &str, aggregates: &str, rules: Value) -> Value {
        let mut role = json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": rules});
        if !aggregates.is_empty() {
            role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {aggregates: "true"}}]});
        }
        role
    }

    #[test]
    fn chains_settle_in_one_call_and_then_nothing_changes() {
        let rule = |verb: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]});
        let mut roles = vec![
            role("admin", "none", "to-admin", Value::Null),
            role("edit", "to-admin", "to-edit", json!([rule("stale")])),
            role("own-edit", "to-edit", "", json!([rule("create")])),
            role("view", "to-edit", "to-view", Value::Null),
            role("own-view", "to-view", "", json!([rule("get"), rule("get")])),
        ];
        let updates = aggregated(roles.clone());
        let rules = |name: &str| updates.iter().find(|r| r["metadata"]["name"] == name).map(|r| r["rules"].clone());
        assert_eq!(rules("view"), Some(json!([rule("get")])));
        assert_eq!(rules("edit"), Some(json!([rule("create"), rule("get")])));
        assert_eq!(rules("admin"), rules("edit"));
        assert_eq!(updates.len(), 3);
        for update in updates {
            let at = roles.iter().position(|r| r["metadata"]["name"] == update["metadata"]["name"]);
            roles[at.unwrap()] = update;
        }
        assert!(aggregated(roles).is_empty());
    }

    #[test]
    fn roles_that_select_each_other_settle() {
        let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        let roles =
            vec![role("a", "x", "y", Value::Null), role("b", "y", "x", Value::Null), role("c", "y", "", rules.clone())];
        let updates = aggregated(roles);
        assert!(updates.iter().all(|r| r["rules"] == rules) && updates.len() == 2);
    }
}
