//! A container's runtime configuration from its spec: command, environment, mounts, resources, security.
//!
//! Pure but for [`spec`], which reads the objects that the spec refers to, and [`message`], which reads files.

pub mod env;
pub mod expand;
pub mod fieldref;
pub mod message;
pub mod mounts;
pub mod resources;
pub mod security;
pub mod spec;
