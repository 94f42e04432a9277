//! Validating policies: what they say of an object as it would be stored, and what their bindings make of that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::Value;
use apimachinery::status::{Cause, Result, StatusError};
use serde::Serialize;

use super::config::{Binding, Policy};
use super::expressions::{BUDGET, Evaluation, Fault, Inputs, Outcome};
use super::found::{self, Found, Invocation};
use super::metrics::error_type;
use super::{Attempt, Hooks, conditions};
use crate::admission::webhooks::{matching, review};

/// A `messageExpression`'s outcome that is longer, in bytes, is not used.
const MAX_MESSAGE_BYTES: usize = 5 * 1024;
/// An audit annotation's value is cut off after as many bytes.
const MAX_ANNOTATION_BYTES: usize = 10 * 1024;
/// The audit log is told of so many failures of one write.
const MAX_AUDITED_FAILURES: usize = 50;

/// What one validation, or a policy as a whole, came to.
struct Decision {
    denied: bool,
    /// Why nothing could be decided, if so; then the failure policy has decided.
    failed: bool,
    message: String,
    reason: String,
    took: Duration,
}

impl Decision {
    fn failure(policy: &Policy, message: &str) -> Self {
        let took = Duration::ZERO;
        Decision { denied: !policy.fails_open, failed: true, message: message.to_owned(), reason: String::new(), took }
    }

    /// As upstream, a plain refusal counts as `invalid_error`.
    fn error_type(&self) -> &'static str {
        error_type((self.denied || self.failed).then_some(&*self.message))
    }
}

/// What an audit annotation came to, by its key.
enum Note {
    Value(String),
    Nothing,
    Failed(String),
}

#[derive(Default)]
struct Verdict {
    decisions: Vec<Decision>,
    notes: Vec<(String, Note)>,
}

/// A refusal, kept until all policies have been asked: the first is told.
struct Refusal {
    policy: Arc<Policy>,
    binding: Option<Arc<Binding>>,
    message: String,
    reason: String,
}

/// Asks all policies about the object as it would be stored.
pub async fn validate(hooks: &Hooks, attempt: &Attempt<'_>, object: &Value, old: Option<&Value>) -> Result<()> {
    let found = found::find(hooks, attempt, object, old).await;
    if found.is_empty() {
        return Ok(());
    }
    let namespace = found::namespace(attempt)?;
    let mut enforcer = Enforcer { attempt, refusals: Vec::new(), notes: Notes::default(), failures: Vec::new() };
    for found in found {
        match found {
            Found::Fault(fault) if fault.policy.fails_open => {}
            Found::Fault(fault) => enforcer.refusals.push(Refusal {
                policy: fault.policy,
                binding: fault.binding,
                message: fault.message,
                reason: String::new(),
            }),
            Found::Invocation(invocation) => match judge(&invocation, attempt, object, old, &namespace).await {
                Ok(verdict) => enforcer.enforce(&invocation, verdict),
                Err(_) if invocation.policy.fails_open => {}
                Err(why) => enforcer.refusals.push(Refusal::of(&invocation, &why, "")),
            },
        }
    }
    enforcer.publish();
    match enforcer.refusals.first() {
        None => Ok(()),
        Some(refusal) => Err(refusal.error(attempt, object)),
    }
}

/// What the policy says, or why it cannot be asked: then its failure policy decides, whatever the binding would make of a verdict.
async fn judge(
    invocation: &Invocation,
    attempt: &Attempt<'_>,
    object: &Value,
    old: Option<&Value>,
    namespace: &Value,
) -> Result<Verdict, String> {
    let shown = found::shown(attempt, &invocation.row, object, old)
        .await
        .map_err(|error| format!("failed to configure binding: failed to convert object version: {}", error.message))?;
    let (object, old) = match &shown {
        Some((object, old)) => (object, old.as_ref()),
        None => (object, old),
    };
    let request = matching::bare(review::request(attempt, &invocation.row, "", &Value::Null, None));
    let resource = attempt.resource_info();
    let inputs = Inputs {
        object,
        old: old.unwrap_or(&Value::Null),
        request: &request,
        namespace,
        params: invocation.params.as_ref().unwrap_or(&Value::Null),
        authorizer: &attempt.server.authorizer,
        user: &attempt.call.user,
        resource: &resource,
    };
    Ok(evaluate(&invocation.policy, &inputs))
}

fn evaluate(policy: &Policy, inputs: &Inputs<'_>) -> Verdict {
    let failure = |why: &str| Verdict { decisions: vec![Decision::failure(policy, why)], notes: Vec::new() };
    match conditions(policy, inputs) {
        Ok(true) => {}
        Ok(false) => return Verdict::default(),
        Err(why) => return failure(&why),
    }
    let mut outcomes = Vec::with_capacity(policy.validations.len());
    let evaluation = Evaluation::new(&policy.environment, inputs, BUDGET);
    for validation in &policy.validations {
        let started = Instant::now();
        match evaluation.run(&validation.expression) {
            Err(fault @ Fault::Budget) => return failure(fault.message()),
            outcome => outcomes.push((outcome, started.elapsed())),
        }
    }
    let messages = messages(policy, inputs, evaluation.budget());
    let decisions =
        policy.validations.iter().zip(outcomes).enumerate().map(|(index, (validation, (outcome, took)))| {
            let decision = match (outcome, &messages) {
                (Err(fault), _) => Decision::failure(policy, fault.message()),
                (Ok(_), Err(fault)) => {
                    Decision::failure(policy, &format!("failed messageExpression: {}", fault.message()))
                }
                (Ok(Outcome::Bool(true)), _) => {
                    Decision { denied: false, failed: false, message: String::new(), reason: String::new(), took }
                }
                (Ok(_), Ok(messages)) => {
                    let made = messages[index].as_deref().and_then(usable);
                    let written = Some(validation.message.trim()).filter(|text| !text.is_empty());
                    let message = made.or(written).map_or_else(
                        || format!("failed expression: {}", validation.expression.source().trim()),
                        str::to_owned,
                    );
                    Decision { denied: true, failed: false, message, reason: validation.reason.clone(), took }
                }
            };
            Decision { took, ..decision }
        });
    let decisions = decisions.collect();
    match notes(policy, inputs) {
        Ok(notes) => Verdict { decisions, notes },
        Err(fault) => failure(fault.message()),
    }
}

/// What the validations' message expressions come to, at the place of each; `None` where there is none or it has failed.
fn messages(policy: &Policy, inputs: &Inputs<'_>, budget: u64) -> Result<Vec<Option<String>>, Fault> {
    let evaluation = Evaluation::new(&policy.environment, inputs, budget);
    let message = |compiled| match evaluation.run(compiled) {
        Ok(Outcome::Text(text)) => Ok(Some(text)),
        Ok(_) => Ok(None),
        Err(Fault::Expression(why)) => {
            tracing::debug!(policy = policy.name, why, "error while evaluating messageExpression");
            Ok(None)
        }
        Err(fault @ Fault::Budget) => Err(fault),
    };
    let each = policy.validations.iter().map(|validation| &validation.message_expression);
    each.map(|compiled| compiled.as_ref().map_or(Ok(None), message)).collect()
}

/// A message that may be told: one line, and not too long.
fn usable(message: &str) -> Option<&str> {
    let message = message.trim();
    let fits = !message.is_empty() && message.len() <= MAX_MESSAGE_BYTES && !message.contains('\n');
    fits.then_some(message)
}

fn notes(policy: &Policy, inputs: &Inputs<'_>) -> Result<Vec<(String, Note)>, Fault> {
    if policy.annotations.is_empty() {
        return Ok(Vec::new());
    }
    let evaluation = Evaluation::new(&policy.environment, inputs, BUDGET);
    let each = policy.annotations.iter().map(|annotation| {
        let note = match evaluation.run(&annotation.value) {
            Ok(Outcome::Text(text)) if !text.trim().is_empty() => Note::Value(text.trim().to_owned()),
            Ok(Outcome::Text(_) | Outcome::Null) => Note::Nothing,
            Ok(other) => Note::Failed(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                annotation.value.source(),
                other.type_name(),
            )),
            Err(Fault::Expression(_)) if policy.fails_open => Note::Nothing,
            Err(Fault::Expression(why)) => Note::Failed(why),
            Err(fault @ Fault::Budget) => return Err(fault),
        };
        Ok((annotation.key.clone(), note))
    });
    each.collect()
}

/// Does what bindings say with what policies said.
struct Enforcer<'a> {
    attempt: &'a Attempt<'a>,
    refusals: Vec<Refusal>,
    notes: Notes,
    failures: Vec<AuditedFailure>,
}

/// Audit annotations: by policy and key, the values in the order in which they came, each once.
#[derive(Default)]
struct Notes(BTreeMap<String, Vec<String>>);

impl Notes {
    fn add(&mut self, policy: &str, key: &str, mut value: String) {
        let end = (0..=value.len().min(MAX_ANNOTATION_BYTES)).rev().find(|end| value.is_char_boundary(*end));
        value.truncate(end.unwrap_or_default());
        let known = self.0.entry(format!("{policy}/{key}")).or_default();
        if !known.contains(&value) {
            known.push(value);
        }
    }

    /// By their names in the audit log.
    fn joined(&self) -> impl Iterator<Item = (&str, String)> {
        self.0.iter().map(|(key, values)| (key.as_str(), values.join(", ")))
    }
}

/// A failure that the audit log is told of, in upstream's form.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuditedFailure {
    message: String,
    policy: String,
    binding: String,
    expression_index: usize,
    validation_actions: Vec<String>,
}

impl Enforcer<'_> {
    fn enforce(&mut self, invocation: &Invocation, verdict: Verdict) {
        let (policy, binding) = (&invocation.policy, &invocation.binding);
        let tally = &self.attempt.server.policies.tally;
        for (index, decision) in verdict.decisions.into_iter().enumerate() {
            let observe =
                |action| tally.validated(&policy.name, &binding.name, decision.error_type(), action, decision.took);
            if !decision.denied {
                if decision.failed {
                    observe("allow");
                }
                continue;
            }
            for action in &binding.actions {
                match action.as_str() {
                    "Deny" => {
                        observe("deny");
                        self.refusals.push(Refusal::of(invocation, &decision.message, &decision.reason));
                    }
                    "Audit" => {
                        observe("audit");
                        self.failures.push(AuditedFailure {
                            message: decision.message.clone(),
                            policy: policy.name.clone(),
                            binding: binding.name.clone(),
                            expression_index: index,
                            validation_actions: binding.actions.clone(),
                        });
                    }
                    "Warn" => {
                        observe("warn");
                        let what = format!(
                            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                            policy.name, binding.name, decision.message
                        );
                        self.attempt.call.warnings.extend([what]);
                    }
                    _ => {}
                }
            }
        }
        for (key, note) in verdict.notes {
            match note {
                Note::Nothing => {}
                Note::Value(value) => self.notes.add(&policy.name, &key, value),
                Note::Failed(why) => {
                    let kind = error_type(Some(&why));
                    tally.validated(&policy.name, &binding.name, kind, "deny", Duration::ZERO);
                    self.refusals.push(Refusal::of(invocation, &why, ""));
                }
            }
        }
    }

    fn publish(&self) {
        let failures = &self.failures[..self.failures.len().min(MAX_AUDITED_FAILURES)];
        if let Ok(value) = serde_json::to_string(failures)
            && !failures.is_empty()
        {
            self.attempt.call.warnings.annotate("validation.policy.admission.k8s.io/validation_failure", &value);
        }
        for (key, value) in self.notes.joined() {
            self.attempt.call.warnings.annotate(key, &value);
        }
    }
}

impl Refusal {
    fn of(invocation: &Invocation, message: &str, reason: &str) -> Self {
        Refusal {
            policy: invocation.policy.clone(),
            binding: Some(invocation.binding.clone()),
            message: message.to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn error(&self, attempt: &Attempt<'_>, object: &Value) -> StatusError {
        let policy = &self.policy.name;
        let who = match &self.binding {
            Some(binding) => format!("ValidatingAdmissionPolicy '{policy}' with binding '{}'", binding.name),
            None => format!("ValidatingAdmissionPolicy '{policy}'"),
        };
        let message = format!("{who} denied request: {}", self.message);
        let mut error = found::forbidden(attempt, object, &message);
        (error.reason, error.code) = match self.reason.as_str() {
            "Forbidden" => ("Forbidden", 403),
            "Unauthorized" => ("Unauthorized", 401),
            "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
            _ => ("Invalid", 422),
        };
        if let Some(details) = &mut error.details {
            details.causes.push(Cause { message, ..Cause::default() });
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::testing::Cluster;
    use crate::authz::Authorizer;
    use crate::request::UserInfo;

    fn judged(spec: Value, object: &Value) -> Verdict {
        let policy = Policy::compile(&json!({"metadata": {"name": "p"}, "spec": spec}));
        let authorizer = Authorizer::new(Cluster::new().view);
        let user = Arc::new(UserInfo::new("someone", &[]));
        let null = &Value::Null;
        let (authorizer, user, resource) = (&authorizer, &user, &crate::request::RequestInfo::default());
        evaluate(
            &policy,
            &Inputs { object, old: null, request: null, namespace: null, params: null, authorizer, user, resource },
        )
    }

    fn shown(verdict: &Verdict) -> Vec<String> {
        let each = verdict.notes.iter().map(|(key, note)| match note {
            Note::Value(value) => format!("{key}={value}"),
            Note::Nothing => format!("{key} nothing"),
            Note::Failed(why) => format!("{key} failed: {why}"),
        });
        each.collect()
    }

    #[test]
    fn annotations_are_values_or_nothing_or_faults() {
        let mut spec = json!({"auditAnnotations": [
            {"key": "text", "valueExpression": "' of ' + object.name + ' '"},
            {"key": "blank", "valueExpression": "'  '"},
            {"key": "null", "valueExpression": "null"},
            {"key": "broken", "valueExpression": "string(object.nothing)"},
        ]});
        let object = json!({"name": "a"});
        let notes = shown(&judged(spec.clone(), &object));
        assert_eq!(notes[..3], ["text=of a", "blank nothing", "null nothing"]);
        let failed = "broken failed: expression 'string(object.nothing)' resulted in error: ";
        assert!(notes[3].starts_with(failed), "{notes:?}");
        spec["failurePolicy"] = json!("Ignore");
        let ignored = shown(&judged(spec, &object));
        assert_eq!(ignored[3], "broken nothing");
    }

    #[test]
    fn annotations_of_several_bindings_are_joined() {
        let mut notes = Notes::default();
        for value in ["one", "two", "one"] {
            notes.add("p", "key", value.to_owned());
        }
        notes.add("p", "long", "é".repeat(MAX_ANNOTATION_BYTES));
        let joined: Vec<(&str, String)> = notes.joined().collect();
        assert_eq!(joined[0], ("p/key", "one, two".to_owned()));
        assert_eq!((joined[1].0, joined[1].1.len()), ("p/long", MAX_ANNOTATION_BYTES));
    }

    #[test]
    fn a_refusal_is_worded_by_what_there_is() {
        let spec = json!({"validations": [
            {"expression": " object.name == 'b' "},
            {"expression": "false", "message": "words", "messageExpression": "' '"},
            {"expression": "false", "messageExpression": "string(object.nothing)", "message": "else"},
            {"expression": "object.name == 'a'"},
        ]});
        let verdict = judged(spec, &json!({"name": "a"}));
        let messages: Vec<&str> = verdict.decisions.iter().map(|decision| decision.message.as_str()).collect();
        assert_eq!(messages, ["failed expression: object.name == 'b'", "words", "else", ""]);
        assert!(verdict.decisions.iter().all(|decision| !decision.failed));
    }
}
