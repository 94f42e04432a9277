//! Resource rows: all that the API server knows of a kind.
//!
//! Built-in kinds are rows of generated data; a CustomResourceDefinition compiles at run time into the same row.

mod builtin;
pub mod custom;
mod fields;
mod table;

use std::sync::Arc;

pub use builtin::builtin;
pub use table::{Group, ResourceTable, version_order};

use serde_json::Value;

use crate::schema::decode::{self, Duplicates};
use crate::schema::{self, FieldValidation, Schema, TypeId};
use crate::status::{GroupResource, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// The verbs a row serves, as in discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

impl Verb {
    pub const ALL: [Verb; 8] = [
        Verb::Create,
        Verb::Delete,
        Verb::DeleteCollection,
        Verb::Get,
        Verb::List,
        Verb::Patch,
        Verb::Update,
        Verb::Watch,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Patch => "patch",
            Verb::Update => "update",
            Verb::Watch => "watch",
        }
    }
}

/// A subresource: `status`, `scale`, `log`, … with the kind that its bodies have and the verbs it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: Box<str>,
    /// Group, version and kind of bodies where they differ from the parent's (`autoscaling/v1 Scale`, `policy/v1 Eviction`).
    pub group: Box<str>,
    pub version: Box<str>,
    pub kind: Box<str>,
    pub verbs: Vec<Verb>,
}

/// One column of the Table form. `path` is a JSONPath for custom resources; built-in rows name a cell function instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: Box<str>,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub kind: Box<str>,
    pub format: Box<str>,
    pub description: Box<str>,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
    pub path: Box<str>,
}

/// One served version of one resource.
#[derive(Clone, Debug)]
pub struct ResourceRow {
    /// Empty for the core group.
    pub group: Box<str>,
    pub version: Box<str>,
    pub kind: Box<str>,
    pub list_kind: Box<str>,
    /// Plural, lower case: the path segment.
    pub plural: Box<str>,
    pub singular: Box<str>,
    pub short_names: Vec<Box<str>>,
    pub categories: Vec<Box<str>>,
    pub scope: Scope,
    pub verbs: Vec<Verb>,
    pub subresources: Vec<Subresource>,
    pub columns: Vec<Column>,
    pub schema: Arc<Schema>,
    pub root: TypeId,
    /// The version in which objects are stored; equal to `version` for most rows. Rows of one group and plural share storage.
    pub storage_version: Box<str>,
    /// Key space in the store, upstream's: `pods`, `services/specs`, `apiregistration.k8s.io/apiservices`, `<group>/<plural>`.
    pub storage_prefix: Box<str>,
    /// Fields that `fieldSelector` may name besides `metadata.name` and `metadata.namespace`, as dotted paths.
    pub selectable_fields: Vec<Box<str>>,
    /// False for kinds that are only ever answered (SubjectAccessReview, TokenReview, Binding): create computes, nothing is stored.
    pub stored: bool,
    /// True for rows that come from a CustomResourceDefinition.
    pub custom: bool,
}

impl ResourceRow {
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(&self.group, &self.plural)
    }

    /// Group and *kind*, as upstream's `Invalid` errors print it.
    pub fn group_kind(&self) -> GroupResource {
        GroupResource::new(&self.group, &self.kind)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| &*s.name == name)
    }

    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Fits a decoded object to this kind ([`schema::check`](crate::schema::check::check)) and answers with what to warn of.
    pub fn check(&self, object: &mut Value, duplicates: &Duplicates, mode: FieldValidation) -> Result<Vec<String>> {
        match schema::check(&self.schema, self.root, object, duplicates, mode) {
            Ok(checked) => Ok(checked.warnings),
            Err(why) => Err(decode::cannot_be_handled(&self.kind, &self.version, &self.kind, why)),
        }
    }

    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }
}
