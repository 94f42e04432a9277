//! What a mutation's expression makes of an object.

use std::sync::Arc;

use apimachinery::patch::{self, PatchError};
use apimachinery::resource::ResourceRow;
use apimachinery::schema::{self, Schema, TypeId};
use apimachinery::status::StatusError;
use apimachinery::{Value, apply};

use super::Attempt;
use super::config::Mutation;
use super::expressions::{Evaluation, Outcome};
use super::mutating::Failed;

/// The object after the mutation; `None` if it is to stay as it is.
pub fn patched(
    mutation: &Mutation,
    evaluation: &Evaluation<'_>,
    attempt: &Attempt<'_>,
    row: &Arc<ResourceRow>,
    object: &Value,
) -> Result<Option<Value>, Failed> {
    let (expression, is_patch) = match mutation {
        Mutation::ApplyConfiguration(expression) => (expression, false),
        Mutation::JsonPatch(expression) => (expression, true),
    };
    // As upstream, which finds the schema before it looks at the expression.
    let (schema, root) = schema_of(attempt, row)?;
    if let Some(why) = expression.fault() {
        return Err(Failed::Mutation(why.to_owned()));
    }
    let outcome = evaluation.run(expression).map_err(|fault| Failed::Mutation(fault.message().to_owned()))?;
    match outcome {
        Outcome::Json(operations) if is_patch => json_patch(object, &operations),
        Outcome::Json(configuration) => apply_configuration(schema, root, object, configuration).map(Some),
        other if is_patch => Err(Failed::Mutation(format!(
            "type mismatch: JSONPatchType.expression should evaluate to array, got {}",
            other.type_name()
        ))),
        other => Err(Failed::Mutation(format!(
            "unsupported return type from ApplyConfiguration expression: {}",
            other.type_name()
        ))),
    }
}

/// The schema of what is written: the row's, or that of the body of its subresource.
fn schema_of<'s>(attempt: &Attempt<'_>, row: &'s Arc<ResourceRow>) -> Result<(&'s Schema, TypeId), Failed> {
    let Some(body) = row.subresource(attempt.subresource).filter(|sub| *sub.kind != *row.kind) else {
        return Ok((&*row.schema, row.root));
    };
    let builtin = schema::builtin();
    builtin.by_kind(&body.group, &body.version, &body.kind).map(|root| (&**builtin, root)).ok_or_else(|| {
        let kind = format!("{}/{}, Kind={}", body.group, body.version, body.kind);
        Failed::Refused(StatusError::unavailable(format!(
            "Resource kind {kind} not found. There can be a delay between when CustomResourceDefinitions are created and when they \
             are available."
        )))
    })
}

fn apply_configuration(
    schema: &Schema,
    root: TypeId,
    object: &Value,
    mut configuration: Value,
) -> Result<Value, Failed> {
    for key in ["apiVersion", "kind"] {
        configuration[key] = object[key].clone();
    }
    apply::merge_mutation(schema, root, object.clone(), &configuration)
        .map_err(|why| Failed::Mutation(format!("error applying patch: {why}")))
}

fn json_patch(object: &Value, operations: &Value) -> Result<Option<Value>, Failed> {
    match patch::json::apply(object.clone(), operations) {
        Ok(patched) => Ok(Some(patched)),
        // What the patch was made for is not there: it is not for this object.
        Err(PatchError::TestFailed(_)) => Ok(None),
        Err(error) => Err(Failed::Mutation(format!("JSONPath: {error}"))),
    }
}
