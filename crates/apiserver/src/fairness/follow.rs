//! Keeps what is in force as the objects say, says on each FlowSchema whether its level exists (condition `Dangling`), and puts back
//! what every cluster has of them.

use std::collections::VecDeque;
use std::time::Duration;

use apimachinery::{Value, meta};
use http_body_util::BodyExt as _;
use serde_json::json;
use std::sync::Arc;
use tokio::time::{Instant, sleep, timeout_at};

use super::config::{Level, Schema};
use crate::bootstrap::{flow, is_left_over, reconcile};
use crate::http::respond;
use crate::registry::timestamp;
use crate::request::UserInfo;
use crate::server::{ApiServer, Caller, now_seconds};
use crate::startup;

const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";
/// Upstream's name in `managedFields`.
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
/// Of one schema's status, so that servers that disagree do not write against each other without end.
const WRITES_A_MINUTE: usize = 6;
const MINUTE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(5);
/// How often upstream's objects are put right at most.
const RESTORE_EVERY: Duration = Duration::from_secs(60);

/// Reads the objects that there are, and follows them from then on, until the server stops.
pub fn start(server: &ApiServer) {
    server.gate.fairness.apply(levels(server), schemas(server).iter().map(Schema::of).collect());
    let restored = Instant::now().checked_sub(RESTORE_EVERY);
    let follower = Follower { server: server.clone(), written: VecDeque::new(), restored };
    server.background.spawn(follower.run());
}

fn levels(server: &ApiServer) -> Vec<Level> {
    server.view.list(LEVELS, "").iter().filter_map(|entry| Level::of(&entry.value.value())).collect()
}

fn schemas(server: &ApiServer) -> Vec<Value> {
    server.view.list(SCHEMAS, "").iter().map(|entry| entry.value.value()).collect()
}

struct Follower {
    server: ApiServer,
    /// Schemas whose status was written within the last minute, the oldest first.
    written: VecDeque<(Instant, String)>,
    /// When upstream's objects were put right last.
    restored: Option<Instant>,
}

impl Follower {
    async fn run(mut self) {
        loop {
            let revision = self.server.view.store().revision();
            let watch = |prefix| self.server.view.watch(prefix, revision);
            let (Ok(mut of_schemas), Ok(mut of_levels)) = (watch(SCHEMAS), watch(LEVELS)) else { return };
            loop {
                let again = self.settle().await;
                let changed = async {
                    tokio::select! {
                        events = of_schemas.next() => events,
                        events = of_levels.next() => events,
                    }
                };
                let outcome = match again {
                    Some(at) => timeout_at(at, changed).await,
                    None => Ok(changed.await),
                };
                match outcome {
                    // Its time has come.
                    Err(_) | Ok(Ok(_)) => {}
                    // Fell behind: from the newest state on.
                    Ok(Err(store::Error::Compacted { .. })) => break,
                    Ok(Err(_)) => return,
                }
            }
        }
    }

    /// Puts the objects in force and the conditions right. Returns when to look again, if something could not be written.
    async fn settle(&mut self) -> Option<Instant> {
        let objects = schemas(&self.server);
        let found = self.server.gate.fairness.apply(levels(&self.server), objects.iter().map(Schema::of).collect());
        let mut again = self.restore(&objects).await;
        for (object, (name, level, found)) in objects.iter().zip(found) {
            let Some(condition) = condition(object, &level, found, now_seconds()) else { continue };
            let now = Instant::now();
            self.written.retain(|(at, _)| now.duration_since(*at) < MINUTE);
            if self.written.iter().filter(|(_, known)| *known == name).count() >= WRITES_A_MINUTE {
                again = soonest(again, now + MINUTE);
                continue;
            }
            self.written.push_back((now, name.clone()));
            if let Err((code, why)) = self.write(&name, condition).await
                && code != 404
            {
                tracing::warn!(name, code, why, "cannot write the status of a FlowSchema");
                sleep(Duration::from_millis(100)).await;
                again = soonest(again, now + AGAIN);
            }
        }
        again
    }

    /// Writes upstream's objects that are gone or not as they should be, and deletes those that are upstream's no more. Returns when
    /// that is to be done if it was done a moment ago.
    async fn restore(&mut self, schemas: &[Value]) -> Option<Instant> {
        let wanted = flow::objects();
        let levels: Vec<Value> = self.server.view.list(LEVELS, "").iter().map(|entry| entry.value.value()).collect();
        let all = || schemas.iter().chain(&levels);
        let stored = |object: &Value| {
            all().find(|known| known["kind"] == object["kind"] && meta::name(known) == meta::name(object))
        };
        let wrong = |object: &&Value| stored(object).is_none_or(|known| reconcile(known, object).is_some());
        let wrong: Vec<&Value> = wanted.iter().filter(wrong).collect();
        let left: Vec<&Value> = all().filter(|object| is_left_over(object, &wanted)).collect();
        if wrong.is_empty() && left.is_empty() {
            return None;
        }
        let now = Instant::now();
        if let Some(next) = self.restored.map(|last| last + RESTORE_EVERY).filter(|next| *next > now) {
            return Some(next);
        }
        self.restored = Some(now);
        for object in wrong {
            if let Err(error) = startup::ensure(&self.server, object).await {
                tracing::warn!(%error, name = meta::name(object), "cannot restore an object of priority and fairness");
            }
        }
        for object in left {
            let plural = if object["kind"] == "FlowSchema" { SCHEMAS } else { LEVELS };
            let path = format!("/apis/flowcontrol.apiserver.k8s.io/v1/{plural}/{}", meta::name(object));
            if let Err(error) = startup::send(&self.server, "DELETE", &path, None).await {
                tracing::warn!(%error, path, "cannot delete an object that upstream has no more");
            }
        }
        None
    }

    async fn write(&self, name: &str, condition: Value) -> Result<(), (u16, String)> {
        let object = json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": name},
            "status": {"conditions": [condition]},
        });
        let path = format!(
            "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/{name}/status?fieldManager={MANAGER}&force=true"
        );
        let request = http::Request::patch(path)
            .header(http::header::CONTENT_TYPE, "application/apply-patch+yaml")
            .header(http::header::USER_AGENT, "kube-apiserver/coxswain")
            .body(respond::full(object.to_string()))
            .map_err(|error| (500, error.to_string()))?;
        let user = UserInfo::new("system:apiserver", &["system:masters", "system:authenticated"]);
        let response = self.server.handle(request, Caller::Known(Arc::new(user))).await;
        if response.status().is_success() {
            return Ok(());
        }
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Err((code, String::from_utf8_lossy(&body).into_owned()))
    }
}

fn soonest(known: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(known.map_or(other, |known| known.min(other)))
}

/// The condition that a schema should have; none if it has it.
fn condition(object: &Value, level: &str, found: bool, now: i64) -> Option<Value> {
    let (status, reason) = if found { ("False", "Found") } else { ("True", "NotFound") };
    let end = if found { "and it exists" } else { "but there is no such object" };
    let message = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {end}");
    let conditions = meta::at(object, &["status", "conditions"]).and_then(Value::as_array);
    let known = conditions.into_iter().flatten().find(|condition| condition["type"] == "Dangling");
    let is_so = |c: &Value| c["status"] == status && c["reason"] == reason && c["message"] == *message;
    if known.is_some_and(is_so) {
        return None;
    }
    Some(json!({
        "type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": timestamp(now),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_written_once() {
        let mut object = json!({"metadata": {"name": "s"}});
        let made = condition(&object, "low", false, 0).unwrap();
        assert_eq!(
            made["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"low\" but there is no such object"
        );
        assert_eq!((&made["status"], &made["reason"]), (&json!("True"), &json!("NotFound")));
        object["status"]["conditions"] = json!([made]);
        assert_eq!(condition(&object, "low", false, 60), None);
        let made = condition(&object, "low", true, 60).unwrap();
        assert_eq!((&made["status"], &made["reason"]), (&json!("False"), &json!("Found")));
    }
}
