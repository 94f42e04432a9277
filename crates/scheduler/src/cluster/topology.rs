//! Which domain of a topology key each node is in, as small numbers, one column per key in use.

use std::collections::HashMap;
use std::sync::Arc;

use crate::selector::Labels;

/// The node does not have the label.
pub const NO_DOMAIN: u32 = u32::MAX;

#[derive(Debug, Default)]
pub struct Column {
    /// By slot.
    domains: Vec<u32>,
    numbers: HashMap<String, u32>,
}

impl Column {
    pub fn domain(&self, slot: u32) -> u32 {
        self.domains.get(slot as usize).copied().unwrap_or(NO_DOMAIN)
    }

    /// Domains are numbered below this.
    pub fn domain_count(&self) -> usize {
        self.numbers.len()
    }

    /// Sums what each node has into what each domain has.
    pub fn sum(&self, slots: impl IntoIterator<Item = u32>, of: impl Fn(u32) -> i64) -> Vec<i64> {
        let mut sums = vec![0; self.domain_count()];
        for slot in slots {
            let domain = self.domain(slot);
            if domain != NO_DOMAIN {
                sums[domain as usize] += of(slot);
            }
        }
        sums
    }

    fn set(&mut self, slot: u32, value: Option<&String>) {
        let slot = slot as usize;
        if self.domains.len() <= slot {
            self.domains.resize(slot + 1, NO_DOMAIN);
        }
        self.domains[slot] = match value {
            None => NO_DOMAIN,
            Some(value) => match self.numbers.get(value) {
                Some(number) => *number,
                None => {
                    let number = self.numbers.len() as u32;
                    self.numbers.insert(value.clone(), number);
                    number
                }
            },
        };
    }
}

#[derive(Debug, Default)]
pub struct Topology {
    columns: HashMap<Arc<str>, Column>,
}

impl Topology {
    /// Adds the column of `key` unless it is there; `nodes` are all nodes.
    pub fn ensure<'a>(&mut self, key: &Arc<str>, nodes: impl Iterator<Item = (u32, &'a Labels)>) {
        if self.columns.contains_key(key) {
            return;
        }
        let mut column = Column::default();
        for (slot, labels) in nodes {
            column.set(slot, labels.get(&**key));
        }
        self.columns.insert(key.clone(), column);
    }

    pub fn column(&self, key: &str) -> Option<&Column> {
        self.columns.get(key)
    }

    pub fn set_node(&mut self, slot: u32, labels: &Labels) {
        for (key, column) in &mut self.columns {
            column.set(slot, labels.get(&**key));
        }
    }

    pub fn clear_node(&mut self, slot: u32) {
        for column in self.columns.values_mut() {
            column.set(slot, None);
        }
    }
}
