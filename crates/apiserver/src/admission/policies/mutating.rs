//! Mutating policies: each changes the object that the one before it has left.

use std::time::Instant;

use apimachinery::status::{Cause, Result, StatusError};
use apimachinery::{Value, meta};

use super::expressions::{BUDGET, Evaluation, Inputs};
use super::found::{self, Fault, Found, Invocation};
use super::metrics::error_type;
use super::{Attempt, Hooks, conditions, patches};
use crate::admission::Operation;
use crate::admission::webhooks::{Rounds, dispatch, matching, review};

/// Why a mutation is none.
pub enum Failed {
    /// The failure policy decides.
    Mutation(String),
    /// The server's own answer, whatever the policy.
    Refused(StatusError),
}

/// A failure, with what the refusal is for.
struct Refusal {
    fault: Fault,
    reason: &'static str,
}

impl Refusal {
    fn of(invocation: &Invocation, message: String) -> Self {
        let (policy, binding) = (invocation.policy.clone(), Some(invocation.binding.clone()));
        Refusal { fault: Fault { policy, binding, message }, reason: "Invalid" }
    }
}

/// Lets mutating policies change `object`. Whether any did. To be called twice with the same `rounds` where anything has changed since,
/// be it by webhooks: the second round is for policies that want to see what came after them.
pub async fn mutate(
    hooks: &Hooks,
    attempt: &Attempt<'_>,
    object: &mut Value,
    old: Option<&Value>,
    rounds: &mut Rounds,
) -> Result<bool> {
    // A deletion has no object that could be changed.
    if attempt.operation == Operation::Delete {
        return Ok(false);
    }
    let mut refusals = Vec::new();
    let mut invocations = Vec::new();
    for found in found::find(hooks, attempt, object, old).await {
        match found {
            Found::Invocation(invocation) => invocations.push(invocation),
            Found::Fault(fault) => refusals.push(Refusal { fault, reason: "" }),
        }
    }
    let mut changed = false;
    if !invocations.is_empty() {
        if rounds.again && rounds.last.as_ref() != Some(object) {
            rounds.all_due();
        }
        let namespace = found::namespace(attempt)?;
        for invocation in &invocations {
            changed |= invoke(invocation, attempt, object, old, &namespace, rounds, &mut refusals).await?;
        }
        rounds.last = Some(object.clone());
    }
    rounds.again = true;
    refuse(attempt, object, refusals)?;
    Ok(changed)
}

/// All mutations of one policy with one object of params. Whether the object has changed.
async fn invoke(
    invocation: &Invocation,
    attempt: &Attempt<'_>,
    object: &mut Value,
    old: Option<&Value>,
    namespace: &Value,
    rounds: &mut Rounds,
    refusals: &mut Vec<Refusal>,
) -> Result<bool> {
    let Invocation { policy, row, params, .. } = invocation;
    let shown = match found::shown(attempt, row, object, old).await {
        Ok(shown) => shown,
        Err(error) => {
            let message = format!("failed to configure policy: {}", error.message);
            let fault = Fault { policy: policy.clone(), binding: None, message };
            refusals.push(Refusal { fault, reason: "" });
            return Ok(false);
        }
    };
    let (current, shown_old) = match shown {
        Some((shown, old)) => (shown, old),
        None => (object.clone(), None),
    };
    let in_own_version = row.version == attempt.row().version && row.group == attempt.row().group;
    let old = if in_own_version { old } else { shown_old.as_ref() };
    let request = matching::bare(review::request(attempt, row, "", &Value::Null, None));
    let resource = attempt.resource_info();
    let inputs = Inputs {
        object: &current,
        old: old.unwrap_or(&Value::Null),
        request: &request,
        namespace,
        params: params.as_ref().unwrap_or(&Value::Null),
        authorizer: &attempt.server.authorizer,
        user: &attempt.call.user,
        resource: &resource,
    };
    match conditions(policy, &inputs) {
        Ok(true) => {}
        Ok(false) => return Ok(false),
        Err(why) => {
            refusals.push(Refusal::of(invocation, why));
            return Ok(false);
        }
    }
    let key = key(invocation);
    if rounds.again && !rounds.due.contains(&key) {
        return Ok(false);
    }
    let mutated = mutated(invocation, attempt, inputs, refusals)?;
    let changed = mutated.is_some();
    if let Some(mutated) = mutated {
        *object = dispatch::back(attempt, row, mutated).await?;
        rounds.all_due();
    }
    if policy.reinvoked {
        rounds.invoked.push(key);
    }
    Ok(changed)
}

/// What the mutations make of the object, each of what the one before it has left; `None` if it is the same as before.
fn mutated(
    invocation: &Invocation,
    attempt: &Attempt<'_>,
    inputs: Inputs<'_>,
    refusals: &mut Vec<Refusal>,
) -> Result<Option<Value>> {
    let Invocation { policy, binding, row, .. } = invocation;
    let before = inputs.object;
    let mut current = before.clone();
    for mutation in policy.mutations.iter().filter(|_| !before.is_null()) {
        let started = Instant::now();
        let evaluation = Evaluation::new(&policy.environment, &Inputs { object: &current, ..inputs }, BUDGET);
        let outcome = patches::patched(mutation, &evaluation, attempt, row, &current);
        let why = match &outcome {
            Ok(_) => None,
            Err(Failed::Mutation(why)) => Some(why.as_str()),
            Err(Failed::Refused(error)) => Some(error.message.as_str()),
        };
        attempt.server.policies.tally.mutated(&policy.name, &binding.name, error_type(why), started.elapsed());
        match outcome {
            Ok(None) => {}
            Ok(Some(mut next)) => {
                dispatch::complete(attempt, row, &mut next)?;
                current = next;
            }
            Err(Failed::Mutation(why)) => refusals.push(Refusal::of(invocation, why)),
            Err(Failed::Refused(error)) => return Err(error),
        }
    }
    Ok((current != *before).then_some(current))
}

/// What tells invocations apart between the rounds.
fn key(invocation: &Invocation) -> String {
    let params = invocation.params.as_ref().unwrap_or(&Value::Null);
    let (policy, binding) = (&invocation.policy.name, &invocation.binding.name);
    format!("{policy}/{binding}/{}/{}", meta::namespace(params), meta::name(params))
}

/// The first refusal is told, all are listed.
fn refuse(attempt: &Attempt<'_>, object: &Value, mut refusals: Vec<Refusal>) -> Result<()> {
    refusals.retain(|refusal| !refusal.fault.policy.fails_open);
    let Some(first) = refusals.first() else { return Ok(()) };
    let mut error = found::forbidden(attempt, object, "");
    error.message = message(&first.fault);
    if !first.reason.is_empty() {
        error.reason = first.reason;
    }
    if let Some(details) = &mut error.details {
        let cause = |refusal: &Refusal| Cause { message: message(&refusal.fault), ..Cause::default() };
        details.causes.extend(refusals.iter().map(cause));
    }
    Err(error)
}

fn message(fault: &Fault) -> String {
    let (policy, why) = (&fault.policy.name, &fault.message);
    match &fault.binding {
        Some(binding) => format!("policy '{policy}' with binding '{}' denied request: {why}", binding.name),
        None => format!("policy {policy:?} denied request: {why}"),
    }
}
