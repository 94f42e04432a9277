//! The controllers against the real API server.

mod cluster_wide;
mod support;
mod workloads;
