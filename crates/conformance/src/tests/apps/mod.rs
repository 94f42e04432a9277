//! sig-apps.

mod budgets;
mod cronjobs;
mod jobs;
mod revisions;
mod workloads;

use super::Test;

pub fn all() -> Vec<Test> {
    [budgets::TESTS, cronjobs::TESTS, jobs::TESTS, revisions::TESTS, workloads::TESTS].concat()
}
