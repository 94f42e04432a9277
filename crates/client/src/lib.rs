//! What every component is written on: API clients whose transport is a parameter, shared informers, work queues,
//! the revision gate, events, leader election.
//!
//! Must not know: the API server or the store. A component cannot tell whether it runs in the server's process.

mod cache;
pub mod context;
pub mod error;
pub mod events;
pub mod gate;
pub mod https;
pub mod informer;
pub mod leader;
pub mod queue;

pub use context::{ClientFactory, Context};
pub use error::{
    ClientError, found, is_already_exists, is_conflict, is_forbidden, is_invalid, is_namespace_terminating,
    is_not_found,
};
pub use events::{EventType, Recorder};
pub use gate::Gate;
pub use informer::{Change, Index, Informer, Informers, Kind, ObjectKey, key_of};
pub use leader::Election;
pub use queue::{Next, Queue, QueueConfig, run_workers};
