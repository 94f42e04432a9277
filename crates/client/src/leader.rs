//! Leader election by Lease (upstream's `leaderelection` with a LeaseLock): of several servers one runs the controllers.
//!
//! Safe against clock skew between servers, because a candidate measures the age of a lease from when it saw the lease
//! change, on its own monotonic clock. The holder stops before another may start, as long as clocks run at similar rates.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::found;

/// Which lease is fought for, by whom, and how patiently. Durations as upstream: lease > renewal deadline > retry period.
#[derive(Clone, Debug)]
pub struct Election {
    pub namespace: String,
    pub name: String,
    /// Unique among the candidates (host name and a random part).
    pub identity: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl Election {
    /// Upstream's defaults: 15 s, 10 s, 2 s, in `kube-system`.
    pub fn new(name: &str, identity: &str) -> Self {
        Election {
            namespace: "kube-system".to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// The lease as last seen, and when it was first seen in that form.
#[derive(Clone, Debug)]
struct Observed {
    spec: Option<LeaseSpec>,
    since: Instant,
}

#[derive(Debug, PartialEq)]
enum Step {
    /// Write this spec.
    Claim(LeaseSpec),
    /// Another holds it.
    Follow,
}

/// What to do, given the lease's spec as observed. `now` is the wall clock written into the lease, for people to read.
fn decide(election: &Election, observed: &Observed, instant: Instant, now: Timestamp) -> Step {
    let old = observed.spec.clone().unwrap_or_default();
    let holder = old.holder_identity.as_deref().unwrap_or_default();
    let mine = holder == election.identity;
    let duration = old.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let expired = observed.since + duration.unwrap_or(election.lease_duration) <= instant;
    if !mine && !holder.is_empty() && !expired {
        return Step::Follow;
    }
    let transitions = old.lease_transitions.unwrap_or(0);
    Step::Claim(LeaseSpec {
        holder_identity: Some(election.identity.clone()),
        lease_duration_seconds: Some(i32::try_from(election.lease_duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: if mine { old.acquire_time.clone() } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if mine || observed.spec.is_none() { transitions } else { transitions + 1 }),
        ..old
    })
}

struct Candidate {
    api: Api<Lease>,
    election: Election,
    observed: Observed,
}

impl Candidate {
    /// Tries to take or renew the lease once; true if this candidate holds it now.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let current = found(self.api.get(&self.election.name).await)?;
        let spec = current.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        if spec != self.observed.spec {
            self.observed = Observed { spec, since: Instant::now() };
        }
        let Step::Claim(spec) = decide(&self.election, &self.observed, Instant::now(), Timestamp::now()) else {
            return Ok(false);
        };
        let written = match current {
            Some(mut lease) => {
                // The lease's resourceVersion makes two claims at once conflict.
                lease.spec = Some(spec);
                self.api.replace(&self.election.name, &PostParams::default(), &lease).await?
            }
            None => {
                let mut lease = Lease { spec: Some(spec), ..Lease::default() };
                lease.metadata.name = Some(self.election.name.clone());
                lease.metadata.namespace = Some(self.election.namespace.clone());
                self.api.create(&PostParams::default(), &lease).await?
            }
        };
        self.observed = Observed { spec: written.spec, since: Instant::now() };
        Ok(true)
    }

    async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::debug!(lease = self.election.name, %error, "cannot acquire the lease yet"),
            }
            // Upstream's jitter factor of 1.2 keeps candidates apart.
            let pause = self.election.retry_period.mul_f64(rand::random_range(1.0..2.2));
            tokio::time::sleep(pause).await;
        }
    }

    /// Renews until that has failed for the renewal deadline.
    async fn hold(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.election.retry_period).await;
            let deadline = renewed + self.election.renew_deadline;
            match tokio::time::timeout_at(deadline, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::debug!(lease = self.election.name, %error, "cannot renew the lease"),
                Err(_) => return,
            }
        }
    }

    /// Gives the lease up so that the next leader need not wait for its expiry.
    async fn release(&mut self) -> Result<(), kube::Error> {
        let mut lease = self.api.get(&self.election.name).await?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.election.identity) {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            self.api.replace(&self.election.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

/// Campaigns for as long as the process lives: `work` runs whenever this candidate leads, as [`lead`] says. So a process need not end
/// when it loses a lease, provided that nothing of one term of `work` lives on into the next.
pub async fn campaign<F, Fut>(client: kube::Client, election: Election, shutdown: CancellationToken, mut work: F)
where
    F: FnMut(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    while lead(client.clone(), election.clone(), shutdown.clone(), &mut work).await {
        tracing::warn!(lease = election.name, "leadership is lost, campaigning again");
    }
}

/// Waits for leadership, then runs `work` until it ends, leadership is lost or `shutdown` comes; `work` gets a token that
/// is cancelled in the latter two cases, and is waited for. Returns true if the process may campaign again.
pub async fn lead<F, Fut>(client: kube::Client, election: Election, shutdown: CancellationToken, work: F) -> bool
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    let api = Api::namespaced(client, &election.namespace);
    let observed = Observed { spec: None, since: Instant::now() };
    let mut candidate = Candidate { api, election, observed };
    if shutdown.run_until_cancelled(candidate.acquire()).await.is_none() {
        return false;
    }
    tracing::info!(lease = candidate.election.name, identity = candidate.election.identity, "leading");
    let token = shutdown.child_token();
    {
        let mut work = std::pin::pin!(work(token.clone()));
        let ended = tokio::select! {
            () = &mut work => true,
            () = candidate.hold() => false,
            () = shutdown.cancelled() => false,
        };
        token.cancel();
        if !ended {
            work.await;
        }
    }
    // Released only now: while work was ending, nobody else may start.
    let released = tokio::time::timeout(candidate.election.retry_period, candidate.release()).await;
    if !matches!(released, Ok(Ok(()))) {
        tracing::debug!(lease = candidate.election.name, "the lease was not released, it will expire");
    }
    !shutdown.is_cancelled()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> Option<LeaseSpec> {
        Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            acquire_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        })
    }

    /// `holder transitions re-acquired`, or `follow`.
    fn step(spec: Option<LeaseSpec>, age_seconds: u64) -> String {
        let since = Instant::now();
        let now = Timestamp::from_second(1_700_000_000).expect("in range");
        let election = Election::new("kube-controller-manager", "me");
        match decide(&election, &Observed { spec, since }, since + Duration::from_secs(age_seconds), now) {
            Step::Follow => "follow".to_owned(),
            Step::Claim(spec) => format!(
                "{} {} {}",
                spec.holder_identity.expect("set"),
                spec.lease_transitions.expect("set"),
                spec.acquire_time == Some(MicroTime(now))
            ),
        }
    }

    #[test]
    fn a_lease_is_claimed_when_free_expired_or_mine() {
        assert_eq!(step(None, 0), "me 0 true");
        assert_eq!(step(held_by(""), 0), "me 4 true");
        assert_eq!(step(held_by("other"), 14), "follow");
        assert_eq!(step(held_by("other"), 15), "me 4 true");
        assert_eq!(step(held_by("me"), 100), "me 3 false");
    }
}
