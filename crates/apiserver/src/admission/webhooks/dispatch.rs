//! Calling the hooks that a write concerns: mutating ones one after the other, validating ones all at once.

use std::sync::Arc;

use apimachinery::resource::ResourceRow;
use apimachinery::schema::FieldValidation;
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, patch};
use futures::future::join_all;

use super::outcome::{Failure, denied, failed_calling};
use super::{Attempt, Hook, Hooks, Phase, matching, review};
use crate::audit::{Level, Record};
use crate::backend;
use crate::registry::convert;

/// What is remembered between the two rounds of mutating admission (`webhookReinvokeContext`).
#[derive(Default)]
pub struct Rounds {
    /// It is the second round.
    pub again: bool,
    /// What the first round left.
    pub last: Option<Value>,
    /// Who was called, and wants to be again if anything changes.
    pub invoked: Vec<String>,
    /// Who is to be called in the second round.
    pub due: Vec<String>,
}

impl Rounds {
    /// Something has changed after all who were called so far.
    pub fn all_due(&mut self) {
        self.due.append(&mut self.invoked);
    }
}

/// Lets mutating hooks change `object`. Whether any did. To be called twice with the same `rounds` where the first call says so and
/// the built-in plugins have run again: the second round is for hooks that want to see what came after them.
pub async fn mutate(
    hooks: &Hooks,
    attempt: &Attempt<'_>,
    object: &mut Value,
    old: Option<&Value>,
    rounds: &mut Rounds,
) -> Result<bool> {
    if rounds.again && rounds.last.as_ref() != Some(object) {
        rounds.all_due();
    }
    let mut any = false;
    for (index, hook) in hooks.iter().enumerate() {
        let Some(row) = matching::called_as(&hook.criteria, attempt, object, old)? else { continue };
        let (shown, shown_old) = versions(attempt, &row, object, old).await?;
        if !matching::conditions_hold(hook, attempt, &row, &shown, shown_old.as_ref())? {
            continue;
        }
        if rounds.again && !rounds.due.contains(&hook.id) {
            continue;
        }
        let outcome = call_mutating(hook, attempt, &row, &shown, shown_old.as_ref()).await;
        attempt.server.webhooks.tally.called(hook, Phase::Mutating, attempt, outcome.as_ref().err());
        if let Some(record) = &attempt.call.audit {
            let place = format!("round_{}_index_{index}", u8::from(rounds.again));
            annotate_mutation(record, &place, hook, &shown, &outcome);
        }
        let patched = permitted(hook, outcome)?.flatten().map(|(patched, _)| patched);
        if let Some(patched) = patched {
            let next = fit(attempt, &row, patched).await?;
            if next != *object {
                *object = next;
                any = true;
                rounds.all_due();
            }
        }
        if hook.reinvoked {
            rounds.invoked.push(hook.id.clone());
        }
    }
    rounds.last = Some(object.clone());
    rounds.again = true;
    Ok(any)
}

/// Asks all validating hooks about the object as it would be stored. The first in order that refuses is heard.
pub async fn validate(hooks: &Hooks, attempt: &Attempt<'_>, object: &Value, old: Option<&Value>) -> Result<()> {
    struct Asked<'a> {
        hook: &'a Hook,
        row: Arc<ResourceRow>,
        object: Value,
        old: Option<Value>,
    }
    let mut concerned = Vec::new();
    for hook in hooks.iter() {
        let Some(row) = matching::called_as(&hook.criteria, attempt, object, old)? else { continue };
        let (object, old) = versions(attempt, &row, object, old).await?;
        if matching::conditions_hold(hook, attempt, &row, &object, old.as_ref())? {
            concerned.push(Asked { hook, row, object, old });
        }
    }
    let calls = concerned.iter().enumerate().map(async |(index, asked)| {
        let Asked { hook, row, object, old } = asked;
        let outcome = call(hook, Phase::Validating, attempt, row, object, old.as_ref()).await;
        attempt.server.webhooks.tally.called(hook, Phase::Validating, attempt, outcome.as_ref().err());
        if let (Some(record), Err(Failure::Calling(_)), true) = (&attempt.call.audit, &outcome, hook.fails_open) {
            record.annotate(
                &format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}"),
                &hook.name,
            );
        }
        permitted(hook, outcome).map(|_| ())
    });
    join_all(calls).await.into_iter().collect()
}

/// What a mutating hook did, for the audit log: whether it changed anything, the patch where the policy wants what was sent, and
/// that it failed open.
fn annotate_mutation(
    record: &Record,
    place: &str,
    hook: &Hook,
    before: &Value,
    outcome: &Result<Option<Patched>, Failure>,
) {
    const KEY: &str = "mutation.webhook.admission.k8s.io";
    let (configuration, webhook) = (&hook.configuration, &hook.name);
    let patched = outcome.as_ref().ok().and_then(Option::as_ref);
    let mutated = patched.is_some_and(|(after, _)| after != before);
    // In the order of upstream's struct.
    let text = |value: &str| Value::from(value).to_string();
    let head = format!("\"configuration\":{},\"webhook\":{}", text(configuration), text(webhook));
    record.annotate(&format!("{KEY}/{place}"), &format!("{{{head},\"mutated\":{mutated}}}"));
    if let Some((_, patch)) = patched.filter(|_| record.level() >= Level::Request) {
        let value = format!("{{{head},\"patch\":{patch},\"patchType\":\"JSONPatch\"}}");
        record.annotate(&format!("patch.webhook.admission.k8s.io/{place}"), &value);
    }
    if hook.fails_open && matches!(outcome, Err(Failure::Calling(_))) {
        record.annotate(&format!("failed-open.{KEY}/{place}"), webhook);
    }
}

/// The objects in the version that a hook is called with.
pub async fn versions(
    attempt: &Attempt<'_>,
    row: &Arc<ResourceRow>,
    object: &Value,
    old: Option<&Value>,
) -> Result<(Value, Option<Value>)> {
    let own = attempt.row();
    // The body of most subresources is of its own kind, whatever version its parent is asked for in.
    let is_parent = own.subresource(attempt.subresource).is_none_or(|sub| *sub.kind == *own.kind);
    if own.version == row.version && own.group == row.group || !is_parent {
        return Ok((object.clone(), old.cloned()));
    }
    let shown = if object.is_null() { Value::Null } else { convert(attempt, own, row, object.clone()).await? };
    let shown_old = match old {
        Some(old) => Some(convert(attempt, own, row, old.clone()).await?),
        None => None,
    };
    Ok((shown, shown_old))
}

async fn convert(
    attempt: &Attempt<'_>,
    from: &Arc<ResourceRow>,
    to: &Arc<ResourceRow>,
    object: Value,
) -> Result<Value> {
    convert::between(attempt.server, from, to, object).await.map_err(StatusError::internal)
}

/// A patched object as one of the attempt's own row again: known fields, right types, defaults.
async fn fit(attempt: &Attempt<'_>, row: &Arc<ResourceRow>, mut patched: Value) -> Result<Value> {
    complete(attempt, row, &mut patched)?;
    back(attempt, row, patched).await
}

/// Whether what is written is of another kind than the resource, as of most subresources that are not its own parts.
fn has_own_body(attempt: &Attempt<'_>) -> bool {
    let own = attempt.row();
    own.subresource(attempt.subresource).is_some_and(|sub| *sub.kind != *own.kind)
}

/// Gives a patched object of `row` what a decoded one has: known fields, right types, defaults.
pub fn complete(attempt: &Attempt<'_>, row: &Arc<ResourceRow>, patched: &mut Value) -> Result<()> {
    if has_own_body(attempt) {
        return Ok(());
    }
    row.check(patched, &apimachinery::schema::decode::Duplicates::default(), FieldValidation::Ignore)
        .map_err(StatusError::internal)?;
    crate::registry::set_defaults(attempt.server, row, patched);
    Ok(())
}

/// An object of `row` as one of the attempt's own row.
pub async fn back(attempt: &Attempt<'_>, row: &Arc<ResourceRow>, object: Value) -> Result<Value> {
    let own = attempt.row();
    if has_own_body(attempt) || row.version == own.version && row.group == own.group {
        return Ok(object);
    }
    convert(attempt, row, own, object).await
}

/// A failed call is the failure policy's affair: `None` where it is ignored.
fn permitted<T>(hook: &Hook, outcome: Result<T, Failure>) -> Result<Option<T>> {
    match outcome {
        Ok(outcome) => Ok(Some(outcome)),
        Err(Failure::Calling(why)) if hook.fails_open => {
            tracing::warn!(webhook = hook.name, why, "failed calling webhook, failing open");
            Ok(None)
        }
        Err(Failure::Calling(why)) => Err(failed_calling(&hook.name, &why)),
        Err(Failure::Rejected(error) | Failure::Refused(error)) => Err(error),
    }
}

/// One call. The answer gives leave.
async fn call(
    hook: &Hook,
    phase: Phase,
    attempt: &Attempt<'_>,
    row: &ResourceRow,
    object: &Value,
    old: Option<&Value>,
) -> Result<review::Answer, Failure> {
    if attempt.dry_run && !hook.safe_in_dry_run {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Refused(StatusError::bad_request(why)));
    }
    let client = hook.client.as_ref();
    let client = client.ok_or_else(|| {
        let why = "webhook configuration must have either service or URL";
        Failure::Calling(format!("could not get REST client: {why}"))
    })?;
    let uid = uuid::Uuid::new_v4().to_string();
    let request = review::request(attempt, row, &uid, object, old);
    let question = review::question(hook.review_version, &request);
    let reply = attempt.server.webhooks.backends.ask(client, &question, hook.timeout).await;
    let reply = reply.map_err(|failure| match failure {
        backend::Failure::Client(why) => Failure::Calling(format!("could not get REST client: {why}")),
        backend::Failure::Call(why) => Failure::Calling(format!("failed to call webhook: {why}")),
    })?;
    let answer = review::answer(hook.review_version, &uid, phase == Phase::Mutating, &reply)
        .map_err(|why| Failure::Calling(format!("received invalid webhook response: {why}")))?;
    attempt.call.warnings.extend(answer.warnings.iter().cloned());
    if let Some(record) = &attempt.call.audit {
        for (key, value) in &answer.annotations {
            record.annotate(&format!("{}/{key}", hook.name), value);
        }
    }
    if answer.allowed { Ok(answer) } else { Err(Failure::Rejected(denied(&hook.name, &answer.status))) }
}

/// The object as a patch made it, and the patch.
type Patched = (Value, Value);

/// As [`call`]; the object as the answer's patch makes it, if there is one.
async fn call_mutating(
    hook: &Hook,
    attempt: &Attempt<'_>,
    row: &ResourceRow,
    object: &Value,
    old: Option<&Value>,
) -> Result<Option<Patched>, Failure> {
    let answer = call(hook, Phase::Mutating, attempt, row, object, old).await?;
    if answer.patch.is_empty() {
        return Ok(None);
    }
    let operations: Value = serde_json::from_slice(&answer.patch)
        .map_err(|why| Failure::Calling(format!("received undecodable patch in webhook response: {why}")))?;
    if operations.as_array().is_some_and(Vec::is_empty) {
        return Ok(None);
    }
    if object.is_null() {
        let why = "attempted to modify the object, which is not supported for this operation";
        let why = format!("admission webhook {:?} {why}", hook.name);
        return Err(Failure::Refused(StatusError::internal(why)));
    }
    let patched = patch::json::apply(object.clone(), &operations);
    patched.map(|patched| Some((patched, operations))).map_err(|why| Failure::Refused(StatusError::internal(why)))
}
