//! sig-api-machinery.

mod chunking;
mod discovery;
mod fields;
mod namespaces;
mod policies;
mod quota;
mod rows;
mod selectable;
mod webhooks;

use super::Test;

pub use webhooks::{Server, await_conversion};

pub fn all() -> Vec<Test> {
    [
        chunking::TESTS,
        discovery::TESTS,
        fields::TESTS,
        namespaces::TESTS,
        policies::TESTS,
        quota::TESTS,
        rows::TESTS,
        selectable::TESTS,
        webhooks::TESTS,
    ]
    .concat()
}
