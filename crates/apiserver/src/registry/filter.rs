//! Label and field selectors of lists, watches and deletecollection.

use apimachinery::Value;
use apimachinery::resource::ResourceRow;
use apimachinery::selector::field::FieldSelector;
use apimachinery::selector::label::LabelSelector;
use apimachinery::status::{Result, StatusError};

use crate::object::{Entry, Object};
use crate::server::Call;
use crate::strategy::convert;

/// What a client selects. Matching needs no parsing unless a field other than name and namespace is selected.
pub struct Filter {
    labels: LabelSelector,
    fields: Vec<Requirement>,
}

struct Requirement {
    target: Target,
    value: Box<str>,
    equal: bool,
}

enum Target {
    Name,
    Namespace,
    /// Another selectable field; reading it parses the object.
    Field(Box<str>),
}

impl Filter {
    pub fn of(call: &Call) -> Result<Self> {
        let labels = LabelSelector::parse(call.query.get("labelSelector").unwrap_or_default())
            .map_err(|e| StatusError::bad_request(e.to_string()))?;
        let text = call.query.get("fieldSelector").unwrap_or_default();
        let parsed = FieldSelector::parse(text).map_err(|e| StatusError::bad_request(e.to_string()))?;
        let mut fields = parsed
            .terms()
            .iter()
            .map(|r| requirement(&call.row, &r.field, &r.value, r.equal))
            .collect::<Result<Vec<_>>>()?;
        if !call.info.name.is_empty() {
            fields.push(Requirement { target: Target::Name, value: call.info.name.as_str().into(), equal: true });
        }
        Ok(Filter { labels, fields })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, row: &ResourceRow, entry: &Entry) -> bool {
        self.matches_object(row, &entry.value)
    }

    pub fn matches_object(&self, row: &ResourceRow, object: &Object) -> bool {
        if self.is_everything() {
            return true;
        }
        let meta = object.meta();
        if !self.labels.matches(|key| meta.label(key)) {
            return false;
        }
        let mut parsed: Option<Value> = None;
        self.fields.iter().all(|requirement| {
            let found = match &requirement.target {
                Target::Name => *meta.name == *requirement.value,
                Target::Namespace => *meta.namespace == *requirement.value,
                Target::Field(name) => {
                    // Selectors speak of the version that the client asked for.
                    let value = parsed.get_or_insert_with(|| convert::from_storage(row, object.value()));
                    row.selected_value(value, name).is_some_and(|found| *found == *requirement.value)
                }
            };
            found == requirement.equal
        })
    }
}

fn requirement(row: &ResourceRow, field: &str, value: &str, equal: bool) -> Result<Requirement> {
    let target = match field {
        "metadata.name" => Target::Name,
        "metadata.namespace" if row.is_namespaced() => Target::Namespace,
        _ if row.selectable_fields.iter().any(|f| &**f == field) => Target::Field(field.into()),
        _ => {
            let why = format!(
                "Unable to find {:?} that match label selector \"\", field selector {:?}: field label not supported: {field}",
                format!("{}, Resource={}", row.api_version(), row.plural),
                format!("{field}{}{value}", if equal { "=" } else { "!=" })
            );
            return Err(StatusError::bad_request(why));
        }
    };
    Ok(Requirement { target, value: value.into(), equal })
}
