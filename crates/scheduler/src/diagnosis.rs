//! Why a pod cannot be scheduled, in upstream's words.

use std::collections::BTreeMap;

use crate::framework::Rejected;

/// What came of the filters where no node was left.
#[derive(Default)]
pub struct Diagnosis {
    pub nodes: usize,
    /// One plugin rejected the pod before any node was looked at.
    pub before_nodes: Option<String>,
    pub rejected: Vec<Rejected>,
    /// One bit per plugin that took part in the rejection.
    pub plugins: u32,
}

impl Diagnosis {
    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        if let Some(reason) = &self.before_nodes {
            return format!("0/{} nodes are available: {reason}.", self.nodes);
        }
        let reasons = self.rejected.iter().flat_map(|rejected| rejected.why.reasons.iter().map(AsRef::as_ref));
        summary(self.nodes, reasons)
    }
}

/// Counts equal reasons.
pub fn summary<'a>(nodes: usize, reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_insert(0) += 1;
    }
    let mut counted: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    counted.sort();
    match counted.is_empty() {
        true => format!("0/{nodes} nodes are available:"),
        false => format!("0/{nodes} nodes are available: {}.", counted.join(", ")),
    }
}
