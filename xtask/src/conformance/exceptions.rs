//! What is known about single tests of the suite: those that v1.37 no longer has, and those that cannot be run here.

/// Tests of v1.20 that are no conformance tests any more in v1.37.
pub const DROPPED: [&str; 4] = [
    "[k8s.io] [sig-node] Events should be sent by kubelets and the scheduler about pods scheduling and running  [Conformance]",
    "[sig-api-machinery] Events should ensure that an event can be fetched, patched, deleted, and listed [Conformance]",
    "[sig-network] Services should have session affinity timeout work for NodePort service [LinuxOnly] [Conformance]",
    "[sig-network] Services should have session affinity timeout work for service with type clusterIP [LinuxOnly] [Conformance]",
];

const TOKEN_SECRETS: &str =
    "waits for a token Secret in each service account, which Kubernetes has not made since v1.24";

/// Test → why it cannot be run here.
const NOT_RUNNABLE: [(&str, &str); 2] = [
    ("[sig-auth] ServiceAccounts should mount an API token into pods  [Conformance]", TOKEN_SECRETS),
    ("[sig-auth] ServiceAccounts should allow opting out of API token automount  [Conformance]", TOKEN_SECRETS),
];

/// Why a test cannot be run here, if it cannot.
pub fn not_runnable(name: &str) -> Option<&'static str> {
    NOT_RUNNABLE.iter().find(|(known, _)| *known == name).map(|(_, why)| *why)
}

/// Every test that this file names.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    DROPPED.into_iter().chain(NOT_RUNNABLE.map(|(name, _)| name))
}
