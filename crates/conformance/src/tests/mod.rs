//! The tests, by the upstream group that owns them.
//!
//! Each makes the checks of the upstream test of its name, in words of its own: the order of requests, their patch types and
//! preconditions, the exact values and messages compared, and limits of time where upstream's are shorter than ours. They were
//! compared with upstream's texts step by step in November 2026. Files below `test/e2e` of kubernetes/kubernetes, with the commit
//! of the text where it is known:
//!
//! - apps: `statefulset.go` 00c21ced, `deployment.go` 0122c43a, `replica_set.go` 025f2834, `rc.go` 015e2fa2, `cronjob.go`
//!   002c17be, `controller_revision.go` 0003f160, `framework/job/wait.go` 0411cc70, `framework/job/fixtures.go` 1892e4de
//! - node: `common/node/runtimeclass.go` 040a0d08, `common/node/sysctl.go` 81810de6, `common/node/configmap.go` abd60651,
//!   `common/node/secrets.go` de741dc8, `common/node/framework/podresize/resize.go` 0b1dcaba, `node/node_lifecycle.go` 244bf340,
//!   `node/security_context.go` 002c17be, `architecture/conformance.go` 045bbb19
//! - storage: `csi_node.go` and `volume_attachment.go` 168c15a3, `csi_inline.go` 1c9cf914, `volumeattributesclass.go` 1b6390e5,
//!   `storageclass.go` 37fcfcd2, `csistoragecapacity.go` 1495c9f2
//! - network: `service.go` 5230bab6, `endpointslicemirroring.go` 4a0608cb, `apiserver.go` 2e090810
//! - auth: `subjectreviews.go` 7fc9c57d; api machinery: `chunking.go` 025f2834, `discovery.go` 002c17be
//!
//! Texts of v1.33 to v1.36 whose commit is not known: `daemon_set.go`, `job.go`, `disruption.go`, `core_events.go`, `pods.go`,
//! `pod_resize.go`, `podtemplates.go`, `container_probe.go`, `ephemeral_containers.go`, `image_volume.go`, `downwardapi.go`,
//! `limit_range.go`, `preemption.go`, `service_accounts.go`, `podcertificaterequest.go`, `validatingadmissionpolicy.go`,
//! `mutatingadmissionpolicy.go`, `webhook.go`, `flowcontrol.go`, `resource_quota.go`, `namespace.go`, `field_validation.go`,
//! `crd_selectable_fields.go`, `aggregated_discovery.go`, `storage_version_migration.go`, `persistent_volumes.go`,
//! `configmap_volume.go`, `secrets_volume.go`, `service_cidrs.go`, `endpointslice.go`, `proxy.go`, and `framework/conformance`,
//! which makes the checks of all "CRUD Tests". Not compared to the end: the immutability of ConfigMaps and Secrets (their first steps
//! only), prefixes of ConfigMaps (by the text of their twins of Secrets), the CRUD tests of dynamic resources (by the framework that
//! makes them), Endpoints by the EndpointsController (no text found; they mirror those of EndpointSlice), and upstream's preemption
//! test tells allocatable as well, which ours leaves to the kubelet. Of v1.37 itself no text was at hand: what is new in it (device taint rules, and the
//! sixth container of the resizes) follows the published description.

use std::pin::Pin;
use std::sync::Arc;

use anyhow::Result;

use crate::framework::Cx;

/// A test: a codename of the conformance list, and what it does.
#[derive(Clone, Copy)]
pub struct Test {
    pub name: &'static str,
    pub run: fn(Arc<Cx>) -> Run,
}

/// A test under way.
pub type Run = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// A table of tests: `"codename" => function`, the function taking `Arc<Cx>` and whatever else stands in the row.
macro_rules! tests {
    ($($name:literal => $run:expr $(, $argument:expr)*;)*) => {
        pub const TESTS: &[crate::tests::Test] = &[
            $(crate::tests::Test { name: $name, run: |cx| Box::pin($run(cx $(, $argument)*)) }),*
        ];
    };
}

mod apimachinery;
mod apps;
mod auth;
mod cluster;
mod lifecycle;
mod network;
mod node;
mod storage;

/// All tests, in the order of the list.
pub fn all() -> Vec<Test> {
    let mut tests = [
        apimachinery::all(),
        apps::all(),
        auth::TESTS.to_vec(),
        cluster::TESTS.to_vec(),
        network::all(),
        node::all(),
        storage::TESTS.to_vec(),
    ]
    .concat();
    tests.sort_by_key(|test| test.name);
    tests
}

#[cfg(test)]
mod table {
    use std::collections::BTreeSet;

    use super::*;

    /// The codenames of the conformance list that are newer than the newest suite that can be built.
    const NAMES: &str = include_str!("../../data/names.txt");

    #[test]
    fn every_codename_has_one_test_and_no_test_is_of_another() {
        let wanted: BTreeSet<&str> = NAMES.lines().collect();
        let tests = all();
        let registered: BTreeSet<&str> = tests.iter().map(|test| test.name).collect();
        let missing: Vec<_> = wanted.difference(&registered).collect();
        let unknown: Vec<_> = registered.difference(&wanted).collect();
        assert!(missing.is_empty() && unknown.is_empty(), "missing {missing:#?}, unknown {unknown:#?}");
        assert_eq!(tests.len(), wanted.len(), "a codename is there twice");
    }
}
