//! An audit event (`audit.k8s.io/v1`, kind `Event`), and its two forms in text. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use apimachinery::field::quote;
use apimachinery::{Value, meta};
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::policy::{Level, Stage};
use crate::request::{RequestInfo, UserInfo};

/// The fields in upstream's order; what is empty is left out where upstream does.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub level: Level,
    #[serde(rename = "auditID")]
    pub audit_id: Arc<str>,
    pub stage: Stage,
    #[serde(rename = "requestURI")]
    pub request_uri: Arc<str>,
    pub verb: Arc<str>,
    pub user: User,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<User>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "<[String]>::is_empty")]
    pub source_ips: Arc<[String]>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub user_agent: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectReference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_object: Option<Arc<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_object: Option<Arc<RawValue>>,
    pub request_received_timestamp: Micros,
    pub stage_timestamp: Micros,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// `authentication.k8s.io/v1 UserInfo`; without a user an empty one.
#[derive(Clone, Debug, Default)]
pub struct User(pub Option<Arc<UserInfo>>);

impl Serialize for User {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            #[serde(skip_serializing_if = "str::is_empty")]
            username: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            uid: &'a str,
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            groups: &'a [String],
            #[serde(skip_serializing_if = "Option::is_none")]
            extra: Option<&'a BTreeMap<String, Vec<String>>>,
        }
        let fields = match &self.0 {
            None => Fields { username: "", uid: "", groups: &[], extra: None },
            Some(user) => Fields {
                username: &user.name,
                uid: &user.uid,
                groups: &user.groups,
                extra: Some(&user.extra).filter(|extra| !extra.is_empty()),
            },
        };
        fields.serialize(serializer)
    }
}

/// What a request is about.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

impl ObjectReference {
    /// None where the request is for no resource.
    pub fn of(info: &RequestInfo) -> Option<Self> {
        info.is_resource.then(|| ObjectReference {
            resource: info.resource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            api_group: info.group.clone(),
            api_version: info.version.clone(),
            subresource: info.subresource.clone(),
            ..ObjectReference::default()
        })
    }

    /// Adds what only the sent object says.
    pub fn complete(&mut self, object: &Value) {
        let parts = [
            (&mut self.namespace, "namespace"),
            (&mut self.name, "name"),
            (&mut self.uid, "uid"),
            (&mut self.resource_version, "resourceVersion"),
        ];
        for (part, key) in parts {
            if part.is_empty() {
                *part = meta::str_at(object, &["metadata", key]).to_owned();
            }
        }
    }
}

/// Of a `metav1.Status` what an event tells.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
pub struct Status {
    pub(super) metadata: Nothing,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub details: Value,
    #[serde(skip_serializing_if = "is_zero")]
    pub code: u16,
}

/// Upstream's struct has list metadata, which is always there and always empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Nothing {}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(code: &u16) -> bool {
    *code == 0
}

impl Status {
    pub fn of_code(code: u16) -> Self {
        Status { code, ..Status::default() }
    }

    /// From a `Status` in an answer.
    pub fn of(status: &Value, code: u16) -> Self {
        let text = |key: &str| meta::str_at(status, &[key]).to_owned();
        Status {
            status: text("status"),
            message: text("message"),
            reason: text("reason"),
            details: status.get("details").cloned().unwrap_or_default(),
            code,
            ..Status::default()
        }
    }
}

/// A time, told in microseconds (`metav1.MicroTime`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Micros(pub Timestamp);

impl Micros {
    pub fn now() -> Self {
        Micros(Timestamp::try_from(SystemTime::now()).unwrap_or_default())
    }
}

impl Serialize for Micros {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.6}", self.0))
    }
}

impl Event {
    /// One line of `--audit-log-format=json`, line end included.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        let fields = serde_json::to_string(self)?;
        let rest = fields.strip_prefix('{').unwrap_or(&fields);
        Ok(format!("{{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",{rest}\n"))
    }

    /// The text of `--audit-log-format=legacy`, without line end (upstream's `EventString`).
    pub fn legacy(&self) -> String {
        let names = |groups: &[String]| groups.iter().map(|group| quote(group)).collect::<Vec<_>>().join(",");
        let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        let user = self.user.0.as_deref();
        let groups = user.map_or_else(String::new, |user| names(&user.groups));
        let other = self.impersonated_user.as_ref().and_then(|user| user.0.as_deref());
        let namespace = self.object_ref.as_ref().map_or("", |object| &object.namespace);
        let response = self.response_status.as_ref().map_or("<deferred>".to_owned(), |status| status.code.to_string());
        let mut out = format!("{} AUDIT:", self.request_received_timestamp.0);
        let fields = [
            ("id", self.audit_id.to_string()),
            ("stage", self.stage.to_string()),
            ("ip", self.source_ips.first().cloned().unwrap_or_else(|| "<unknown>".to_owned())),
            ("method", self.verb.to_string()),
            ("user", or(user.map_or("", |user| &user.name), "<none>")),
            ("groups", or(&groups, "<none>")),
            ("as", other.map_or("<self>".to_owned(), |other| other.name.clone())),
            ("asgroups", other.map_or("<lookup>".to_owned(), |other| names(&other.groups))),
            ("user-agent", self.user_agent.to_string()),
            ("namespace", or(namespace, "<none>")),
            ("uri", self.request_uri.to_string()),
            ("response", response),
        ];
        for (key, value) in fields {
            let _ = write!(out, " {key}={}", quote(&value));
        }
        out
    }
}

/// `EventList` as one JSON document.
pub fn list(events: &[Arc<Event>]) -> Result<String, serde_json::Error> {
    let events: Vec<&Event> = events.iter().map(|event| &**event).collect();
    let items = serde_json::to_string(&events)?;
    Ok(format!("{{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{{}},\"items\":{items}}}"))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    /// An event at the level of requests.
    pub fn event() -> Event {
        let info = RequestInfo {
            is_resource: true,
            resource: "pods".into(),
            namespace: "default".into(),
            name: "x".into(),
            version: "v1".into(),
            ..RequestInfo::default()
        };
        Event {
            level: Level::Request,
            audit_id: "an-id".into(),
            stage: Stage::ResponseComplete,
            request_uri: "/api/v1/namespaces/default/pods/x".into(),
            verb: "update".into(),
            user: User(Some(Arc::new(UserInfo::new("ann", &["a", "b"])))),
            impersonated_user: None,
            source_ips: Arc::from(["127.0.0.1".to_owned()]),
            user_agent: "kubectl".into(),
            object_ref: ObjectReference::of(&info),
            response_status: Some(Status::of_code(200)),
            request_object: Some(Arc::from(RawValue::from_string("{\"data\":1}".into()).unwrap())),
            response_object: None,
            request_received_timestamp: Micros(Timestamp::from_microsecond(1_700_000_000_000_001).unwrap()),
            stage_timestamp: Micros(Timestamp::from_second(1_700_000_001).unwrap()),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn a_line_is_upstreams() {
        assert_eq!(
            event().line().unwrap(),
            "{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"level\":\"Request\",\"auditID\":\"an-id\",\
             \"stage\":\"ResponseComplete\",\"requestURI\":\"/api/v1/namespaces/default/pods/x\",\"verb\":\"update\",\
             \"user\":{\"username\":\"ann\",\"groups\":[\"a\",\"b\"]},\"sourceIPs\":[\"127.0.0.1\"],\
             \"userAgent\":\"kubectl\",\"objectRef\":{\"resource\":\"pods\",\"namespace\":\"default\",\"name\":\"x\",\
             \"apiVersion\":\"v1\"},\"responseStatus\":{\"metadata\":{},\"code\":200},\"requestObject\":{\"data\":1},\
             \"requestReceivedTimestamp\":\"2023-11-14T22:13:20.000001Z\",\"stageTimestamp\":\"2023-11-14T22:13:21.000000Z\"}\n"
        );
    }

    #[test]
    fn a_legacy_line_is_upstreams() {
        assert_eq!(
            event().legacy(),
            "2023-11-14T22:13:20.000001Z AUDIT: id=\"an-id\" stage=\"ResponseComplete\" ip=\"127.0.0.1\" \
             method=\"update\" user=\"ann\" groups=\"\\\"a\\\",\\\"b\\\"\" as=\"<self>\" asgroups=\"<lookup>\" \
             user-agent=\"kubectl\" namespace=\"default\" uri=\"/api/v1/namespaces/default/pods/x\" response=\"200\""
        );
        let bare = Event { user: User(None), object_ref: None, response_status: None, ..event() };
        let line = bare.legacy();
        assert!(line.contains("user=\"<none>\" groups=\"<none>\""), "{line}");
        assert!(line.ends_with("response=\"<deferred>\""), "{line}");
    }

    #[test]
    fn a_list_has_events_without_their_kind() {
        let text = list(&[Arc::new(event()), Arc::new(event())]).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["kind"], &value["metadata"]), (&json!("EventList"), &json!({})));
        assert_eq!(value["items"].as_array().map(Vec::len), Some(2));
        assert_eq!(value["items"][0].get("kind"), None);
        assert_eq!(value["items"][1]["auditID"], "an-id");
    }

    #[test]
    fn the_object_completes_what_the_path_says() {
        let mut reference = ObjectReference { name: "path".into(), ..ObjectReference::default() };
        reference.complete(&json!({"metadata": {"name": "body", "uid": "u", "resourceVersion": "7"}}));
        assert_eq!((&*reference.name, &*reference.uid, &*reference.resource_version), ("path", "u", "7"));
    }
}
