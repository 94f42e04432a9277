//! The API server: authenticate → authorise → admit → strategy → commit, over HTTP or in process.
//!
//! One code path serves every verb for every row of the resource table. Outside `strategy/` no code here names a kind,
//! except where the kind is a request itself (`authn/`, `authz/`: reviews and tokens).

pub mod admission;
pub mod aggregator;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod backend;
pub mod background;
pub mod bootstrap;
mod cel;
mod conversion;
mod crds;
mod discovery;
pub mod error;
mod fairness;
pub mod gate;
pub mod health;
pub mod http;
mod metrics;
pub mod nonresource;
pub mod object;
pub mod peers;
pub mod proxy;
mod registry;
pub mod request;
pub mod server;
mod startup;
pub mod strategy;
pub mod view;
mod warnings;

pub use crds::start as serve_definitions;
pub use gate::Limits;
pub use server::{ApiServer, Caller, Components};
pub use startup::{Startup, start};
