//! Options of writes: `CreateOptions`, `UpdateOptions` and `PatchOptions` in one.

use apimachinery::schema::FieldValidation;
use apimachinery::status::{Result, StatusError};
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

const MAX_MANAGER_LENGTH: usize = 128;

impl WriteOptions {
    pub fn of(call: &Call) -> Result<Self> {
        let given = call.query.get("fieldManager").filter(|m| !m.is_empty());
        if let Some(manager) = given {
            check_manager(manager)?;
        }
        let agent = call.header(header::USER_AGENT).unwrap_or("unknown");
        let agent_name = agent.split('/').next().unwrap_or_default();
        let field_validation = match call.query.get("fieldValidation") {
            None | Some("") | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => return Err(bad_validation(other)),
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

fn check_manager(manager: &str) -> Result<()> {
    let problem = if manager.len() > MAX_MANAGER_LENGTH {
        format!("Too long: may not be more than {MAX_MANAGER_LENGTH} bytes")
    } else if manager.chars().any(char::is_control) {
        format!("Invalid value: {manager:?}: should only contain printable characters")
    } else {
        return Ok(());
    };
    Err(StatusError::new(422, "Invalid", format!(" \"\" is invalid: fieldManager: {problem}")))
}

fn bad_validation(value: &str) -> StatusError {
    let message = format!(
        " \"\" is invalid: fieldValidation: Unsupported value: {value:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
    );
    StatusError::new(422, "Invalid", message)
}
