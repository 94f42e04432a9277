//! Pod disruption budgets, as far as preemption spares them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::pod::PodInfo;
use crate::selector::LabelMatch;

#[derive(Default)]
pub struct Budgets(HashMap<(String, String), Budget>);

struct Budget {
    namespace: String,
    pods: LabelMatch,
    allowed: i32,
    /// Already on their way out, and counted.
    disrupted: BTreeSet<String>,
}

impl Budgets {
    pub fn set(&mut self, namespace: &str, name: &str, budget: Option<&PodDisruptionBudget>) {
        let key = (namespace.to_owned(), name.to_owned());
        let Some(budget) = budget else {
            self.0.remove(&key);
            return;
        };
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
        let budget = Budget {
            namespace: namespace.to_owned(),
            pods: LabelMatch::new(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref())),
            allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0),
            disrupted: disrupted.map(|pods| pods.keys().cloned().collect()).unwrap_or_default(),
        };
        self.0.insert(key, budget);
    }

    /// Those whose removal, one after the other, would violate a budget, and the others. Order is kept.
    pub fn split(&self, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
        let mut left: Vec<(&Budget, i32)> = self.0.values().map(|budget| (budget, budget.allowed)).collect();
        pods.into_iter().partition(|pod| {
            let mut violates = false;
            for (budget, allowed) in &mut left {
                let guards = budget.namespace == pod.namespace()
                    && !budget.pods.is_empty()
                    && budget.pods.matches(&pod.class.labels)
                    && !budget.disrupted.contains(pod.name());
                if guards {
                    *allowed -= 1;
                    violates |= *allowed < 0;
                }
            }
            violates
        })
    }
}
