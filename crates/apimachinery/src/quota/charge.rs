//! Admission's part: whether a write may be, and what its quotas have used when it is (upstream's `CheckRequest`).

use serde_json::Value;

use super::{Amounts, Measure, amounts, concerns, hard, in_scope, pod, usage};
use crate::meta;
use crate::quantity::Quantity;

/// A write that may have to be charged.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    pub group: &'a str,
    pub plural: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub object: &'a Value,
    /// None for a create.
    pub old: Option<&'a Value>,
    /// Seconds since the epoch.
    pub now: i64,
}

/// What a write does to one quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Charge {
    Nothing,
    /// The quota is to count the object, but has not been counted itself yet. Whoever counts must start anew.
    Recount,
    /// `status.used` with the write.
    Used(Amounts),
}

impl Write<'_> {
    /// Whether such a write can use more of something than before, whatever the quotas.
    pub fn is_measured(&self) -> bool {
        let creates = self.old.is_none();
        match (Measure::of(self.group, self.plural), self.old) {
            (Measure::Ignored, _) => false,
            (Measure::Pod, Some(_)) if self.subresource == "resize" => true,
            // With its deadline a pod goes from one scope to another.
            (Measure::Pod, Some(old)) => {
                self.subresource.is_empty() && pod::is_terminating(old) != pod::is_terminating(self.object)
            }
            (Measure::Service | Measure::VolumeClaim | Measure::DeviceClaim, Some(_)) => true,
            _ => creates && self.subresource.is_empty(),
        }
    }

    fn concerns(&self, name: &str) -> bool {
        concerns(self.group, self.plural, name)
    }

    fn matches(&self, quota: &Value, object: &Value) -> bool {
        in_scope(self.group, self.plural, quota, object)
    }

    /// What is used more than before, of what `quota` counts.
    fn more(&self, quota: &Value, now_used: &Amounts) -> Amounts {
        let before = self.old.filter(|old| self.matches(quota, old));
        let before = before.map(|old| usage(self.group, self.plural, old, self.now)).unwrap_or_default();
        let more = now_used.iter().map(|(name, amount)| match before.get(name) {
            Some(old) => (name.clone(), *amount - *old),
            None => (name.clone(), *amount),
        });
        more.filter(|(_, amount)| *amount > Quantity::ZERO).collect()
    }
}

/// What the write does to each of a namespace's quotas, in their order; or why it may not be, in upstream's words.
pub fn charge(quotas: &[Value], write: &Write<'_>) -> Result<Vec<Charge>, String> {
    if quotas.is_empty() || !write.is_measured() {
        return Ok(vec![Charge::Nothing; quotas.len()]);
    }
    let concerned = |quota: &Value| write.matches(quota, write.object);
    for quota in quotas.iter().filter(|quota| concerned(quota)) {
        check_known(quota, write)?;
    }
    let used = usage(write.group, write.plural, write.object, write.now);
    let negative: Vec<&str> =
        used.iter().filter(|(_, amount)| amount.signum() < 0).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
    }
    quotas.iter().map(|quota| if concerned(quota) { spend(quota, write, &used) } else { Ok(Charge::Nothing) }).collect()
}

/// The object must say what the quota counts, and the quota what it has counted.
fn check_known(quota: &Value, write: &Write<'_>) -> Result<(), String> {
    let name = meta::name(quota);
    let limits = hard(quota, "status");
    let limited: Vec<&str> = limits.keys().map(String::as_str).filter(|name| write.concerns(name)).collect();
    if Measure::of(write.group, write.plural) == Measure::Pod
        && let Some(missing) = pod::missing(write.object, limited.iter().copied())
    {
        return Err(format!("failed quota: {name}: {missing}"));
    }
    let used = amounts(meta::at(quota, &["status", "used"]));
    if limited.iter().any(|limited| !used.contains_key(*limited)) {
        return Err(format!("status unknown for quota: {name}, resources: {}", limited.join(",")));
    }
    Ok(())
}

fn spend(quota: &Value, write: &Write<'_>, now_used: &Amounts) -> Result<Charge, String> {
    let limits = hard(quota, "status");
    let more = write.more(quota, now_used);
    let uncounted = |name: &String| more.contains_key(name) && !limits.contains_key(name);
    let recount = hard(quota, "spec").keys().any(uncounted);
    let requested: Amounts = more.into_iter().filter(|(name, _)| limits.contains_key(name)).collect();
    if requested.is_empty() {
        return Ok(if recount { Charge::Recount } else { Charge::Nothing });
    }
    let mut used = amounts(meta::at(quota, &["status", "used"]));
    let exceeded: Vec<&String> = requested
        .iter()
        .filter(|(name, amount)| {
            let sum = used.entry((*name).clone()).or_default();
            *sum += **amount;
            limits.get(*name).is_some_and(|limit| *sum > *limit)
        })
        .map(|(name, _)| name)
        .collect();
    // What a status tells has happened already.
    if exceeded.is_empty() || write.subresource == "status" {
        return Ok(Charge::Used(used));
    }
    let before = amounts(meta::at(quota, &["status", "used"]));
    Err(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        meta::name(quota),
        told(&exceeded, &requested),
        told(&exceeded, &before),
        told(&exceeded, &limits),
    ))
}

fn told(names: &[&String], amounts: &Amounts) -> String {
    let parts = names.iter().filter_map(|name| Some(format!("{name}={}", amounts.get(*name)?)));
    parts.collect::<Vec<_>>().join(",")
}
