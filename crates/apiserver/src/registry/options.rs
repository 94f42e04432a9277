//! Options of writes: `CreateOptions`, `UpdateOptions` and `PatchOptions` in one.

use apimachinery::schema::FieldValidation;
use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, apply, field};
use http::header;

use crate::server::Call;

#[derive(Clone, Debug)]
pub struct WriteOptions {
    pub dry_run: bool,
    /// As sent, or the client's name from `User-Agent`.
    pub field_manager: String,
    pub field_manager_given: bool,
    pub field_validation: FieldValidation,
    pub force: bool,
}

/// Upstream cuts names made from `User-Agent` at this many bytes.
const MAX_MANAGER_LENGTH: usize = 128;

impl WriteOptions {
    pub fn of(call: &Call) -> Result<Self> {
        let given = call.query.get("fieldManager").filter(|m| !m.is_empty());
        if let Some(manager) = given {
            let errors = apply::validate_manager(manager, &field::Path::new("fieldManager"));
            if !errors.is_empty() {
                return Err(StatusError::invalid(&options_kind(call), "", &errors));
            }
        }
        let agent = call.header(header::USER_AGENT).unwrap_or("unknown");
        let agent_name = agent.split('/').next().unwrap_or_default();
        let field_validation = match call.query.get("fieldValidation") {
            None | Some("") | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => return Err(bad_validation(call, other)),
        };
        Ok(WriteOptions {
            dry_run: call.query.dry_run()?,
            field_manager: given.map_or_else(|| printable(agent_name), str::to_owned),
            field_manager_given: given.is_some(),
            field_validation,
            force: call.query.flag("force"),
        })
    }
}

fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(MAX_MANAGER_LENGTH).collect()
}

/// The kind of options that a request's verb takes.
fn options_kind(call: &Call) -> GroupResource {
    let kind = match call.info.verb.as_str() {
        "create" => "CreateOptions",
        "patch" => "PatchOptions",
        _ => "UpdateOptions",
    };
    GroupResource::new("meta.k8s.io", kind)
}

fn bad_validation(call: &Call, value: &str) -> StatusError {
    let path = field::Path::new("fieldValidation");
    let error = field::Error::not_supported(&path, &Value::from(value), &["Ignore", "Strict", "Warn"]);
    StatusError::invalid(&options_kind(call), "", &[error])
}
