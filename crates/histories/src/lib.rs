//! Histories of concurrent clients: how they are recorded, and whether a linearizable store with watches can have made them.
//!
//! For tests only: of the store as a library, of the API server, of the real binary, on either back end. Must not know: any of
//! them. What is tested implements [`drive::Subject`].
//!
//! - [`history`] is what was seen. Plain data.
//! - [`check`](check::check) says what is wrong with a history. Pure.
//! - [`drive`] makes a history: clients that write and read a few keys at once, watchers that resume.
//! - [`api`] makes a subject of anything that carries requests to a Kubernetes API, upstream's too.
//! - [`rounds`] says how long tests go on: bounded in CI, as long as told in `cargo xtask prove`.

pub mod api;
pub mod check;
pub mod drive;
mod events;
pub mod history;
mod log;
mod register;
pub mod rounds;
#[cfg(test)]
mod tests;

pub use check::{Rule, Violation, check};
pub use history::{Answer, Call, Change, History, Listing, Note, Op, Revision, Stream, Time, Value, Watcher};
