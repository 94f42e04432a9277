//! sig-network.

mod endpoints;
mod proxy;
mod rows;
mod services;

use super::Test;

pub fn all() -> Vec<Test> {
    [endpoints::TESTS, proxy::TESTS, rows::TESTS, services::TESTS].concat()
}
