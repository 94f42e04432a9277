//! sig-node.

mod config;
mod devices;
mod ephemeral;
mod pods;
mod resize;
mod runtime;
mod volumes;

use super::Test;

pub fn all() -> Vec<Test> {
    [config::TESTS, devices::TESTS, ephemeral::TESTS, pods::TESTS, resize::TESTS, runtime::TESTS, volumes::TESTS]
        .concat()
}
