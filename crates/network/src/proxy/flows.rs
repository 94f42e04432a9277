//! Which tracked UDP flows a change of rules makes stale, and their deletion.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::plan::{Frontend, ServiceRules};
use crate::Result;
use crate::netlink::{conntrack, route};

/// UDP frontends whose flows must be looked at, with those who may answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StaleFlows {
    frontends: BTreeMap<Frontend, BTreeSet<IpAddr>>,
}

impl StaleFlows {
    /// Notes the frontends that lost an endpoint, or that had none: then a client's flow was tracked untranslated.
    pub fn note(&mut self, old: Option<&ServiceRules>, new: &ServiceRules) {
        let empty = BTreeMap::new();
        let old = old.map_or(&empty, |rules| &rules.udp);
        for frontend in old.keys().chain(new.udp.keys()) {
            let before = old.get(frontend).cloned().unwrap_or_default();
            let now = new.udp.get(frontend).cloned().unwrap_or_default();
            let gained_first = before.is_empty() && !now.is_empty();
            if gained_first || !before.is_subset(&now) {
                self.frontends.insert(*frontend, now);
            }
        }
    }

    /// Deletes the flows that go to somebody who is no endpoint any more.
    pub fn delete(&self) -> Result<()> {
        let Some(first) = self.frontends.keys().next() else { return Ok(()) };
        tracing::debug!(?first, count = self.frontends.len(), "looking for stale UDP flows");
        let local: BTreeSet<IpAddr> =
            route::Handle::open()?.all_addresses()?.iter().map(|(_, net)| net.addr()).collect();
        for ipv6 in [false, true] {
            conntrack::delete_flows(ipv6, libc::IPPROTO_UDP as u8, |flow| self.is_stale(flow, &local))?;
        }
        Ok(())
    }

    fn is_stale(&self, flow: &conntrack::Flow, local: &BTreeSet<IpAddr>) -> bool {
        let by_address = self.frontends.get(&Frontend::Address(flow.destination, flow.destination_port));
        let by_port = || {
            let port = self.frontends.get(&Frontend::NodePort(flow.destination_port));
            port.filter(|_| local.contains(&flow.destination))
        };
        by_address.or_else(by_port).is_some_and(|endpoints| !endpoints.contains(&flow.answering))
    }
}
