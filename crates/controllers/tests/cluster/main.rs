//! The controllers against the real API server.

mod batch;
mod certificates;
mod chaos;
mod cluster_wide;
mod disruption;
mod quota;
mod stateful;
mod support;
mod workloads;
