//! The tests, by the upstream group that owns them.

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
