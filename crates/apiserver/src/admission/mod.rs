//! Admission: policy between authorisation and commit. Built-in plugins are pure over the request and a read view.

#[cfg(test)]
pub(crate) mod testing;

use apimachinery::Value;
use apimachinery::resource::ResourceRow;
use apimachinery::status::Result;

use crate::request::UserInfo;
use crate::view::View;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// One request as admission sees it (`admission.Attributes`).
pub struct Request<'a> {
    pub operation: Operation,
    pub user: &'a UserInfo,
    pub row: &'a ResourceRow,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// The object as it would be stored; for delete `Null`, for subresources their body.
    pub object: &'a mut Value,
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    /// Seconds since the epoch.
    pub now: i64,
    pub seed: u64,
    pub view: &'a View,
    /// Warnings for the client (`Warning: 299` headers).
    pub warnings: &'a mut Vec<String>,
}

/// An admission plugin. `admit` may change the object and runs before decoding defaults are final; `validate` runs after all mutation.
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;
    fn handles(&self, operation: Operation) -> bool;
    fn admit(&self, _request: &mut Request<'_>) -> Result<()> {
        Ok(())
    }
    fn validate(&self, _request: &mut Request<'_>) -> Result<()> {
        Ok(())
    }
}

/// The plugins in upstream's order.
#[derive(Default)]
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Chain {
    pub fn new(plugins: Vec<Box<dyn Plugin>>) -> Self {
        Chain { plugins }
    }

    pub fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        self.applicable(request.operation).try_for_each(|plugin| plugin.admit(request))
    }

    pub fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        self.applicable(request.operation).try_for_each(|plugin| plugin.validate(request))
    }

    fn applicable(&self, operation: Operation) -> impl Iterator<Item = &dyn Plugin> {
        self.plugins.iter().map(|p| &**p).filter(move |p| p.handles(operation))
    }
}
