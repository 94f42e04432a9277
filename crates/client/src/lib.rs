//! What every component is written on: API clients whose transport is a parameter, shared informers, work queues.
//!
//! Must not know: the API server or the store. A component cannot tell whether it runs in the server's process.

pub mod context;
pub mod informer;
pub mod queue;

pub use context::{ClientFactory, Context};
pub use informer::{Change, Informer, Informers};
pub use queue::{Queue, QueueConfig, run_workers};
