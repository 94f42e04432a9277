//! Service account tokens of old, which lie in Secrets of type `kubernetes.io/service-account-token` and live as long as these do
//! (upstream's `pkg/serviceaccount/legacy.go`), and marking those Secrets with the day of their last use.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::meta;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Notify;

use super::jwt::TokenError;
use super::service_account::{ACCOUNTS, SECRETS, groups, split_user_name, user_name};
use crate::request::UserInfo;
use crate::server::ApiServer;
use crate::view::View;

/// `iss` of these tokens.
pub const ISSUER: &str = "kubernetes/serviceaccount";
/// The day of the last use, on the Secret.
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Since when the cleaner has put an unused Secret out of use.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Says since when uses are marked.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";

#[derive(Debug, Serialize, Deserialize)]
pub struct Claims {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    sub: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
}

impl Claims {
    /// `account` is namespace, name and UID.
    pub fn of((namespace, account, uid): (&str, &str, &str), secret: &str) -> Self {
        Claims {
            iss: ISSUER.to_owned(),
            sub: user_name(namespace, account),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            account: account.to_owned(),
            uid: uid.to_owned(),
        }
    }

    /// The user of `token`, whose signature was checked: its Secret must still have it, and its account be the same.
    pub fn user(&self, token: &str, view: &View, tracker: &Tracker, now: i64) -> Result<UserInfo, TokenError> {
        let refuse = |why: &str| Err(TokenError::Refused(why.to_owned()));
        let required = [
            (&self.sub, "sub"),
            (&self.namespace, "namespace"),
            (&self.secret, "secretName"),
            (&self.account, "serviceAccountName"),
            (&self.uid, "serviceAccountUID"),
        ];
        if let Some((_, name)) = required.iter().find(|(value, _)| value.is_empty()) {
            return refuse(&format!("{name} claim is missing"));
        }
        if split_user_name(&self.sub) != Some((&self.namespace, &self.account)) {
            return refuse("sub claim is invalid");
        }
        let Some(secret) = view.get(SECRETS, &self.namespace, &self.secret) else {
            return refuse("Token has been invalidated");
        };
        if secret.value.meta().deletion_timestamp.is_some() {
            return refuse("Token has been invalidated");
        }
        let secret = secret.value.value();
        let kept = STANDARD.decode(meta::str_at(&secret, &["data", "token"])).unwrap_or_default();
        if super::fingerprint(&kept) != super::fingerprint(token) {
            return refuse("Token does not match server's copy");
        }
        let (namespace, account) = (&self.namespace, &self.account);
        let Some(entry) = view.get(ACCOUNTS, namespace, account) else {
            return refuse(&format!("serviceaccounts {account:?} not found"));
        };
        let found = entry.value.meta();
        if found.deletion_timestamp.is_some() {
            return refuse(&format!("ServiceAccount {namespace}/{account} has been deleted"));
        }
        if *found.uid != *self.uid {
            return refuse(&format!("ServiceAccount UID ({}) does not match claim ({})", found.uid, self.uid));
        }
        if meta::label(&secret, INVALID_SINCE).is_some() {
            return refuse(&format!(
                "the token in secret {namespace}/{} for service account {namespace}/{account} has been marked invalid. Use \
                 tokens from the TokenRequest API or manually created secret-based tokens, or remove the \
                 '{INVALID_SINCE}' label from the secret to temporarily allow use of this token",
                self.secret
            ));
        }
        let today = day(now);
        if meta::label(&secret, LAST_USED) != Some(&today) {
            tracker.used(namespace, &self.secret, today);
        }
        let (name, groups) = (self.sub.clone(), groups(namespace));
        Ok(UserInfo { name, uid: self.uid.clone(), groups, ..UserInfo::default() })
    }

    /// What the audit log is told of a token with these claims: which Secret it is of, and whether that one was made by hand.
    pub fn note(&self, view: &View, user: Option<&UserInfo>) -> Option<(&'static str, String)> {
        let Some(user) = user else {
            let secret = view.get(SECRETS, &self.namespace, &self.secret)?;
            secret.value.meta().label(INVALID_SINCE)?;
            let text = format!("{}/{}", self.secret, self.namespace);
            return Some(("authentication.k8s.io/legacy-token-invalidated", text));
        };
        if user.name != self.sub {
            return None;
        }
        let account = view.get(ACCOUNTS, &self.namespace, &self.account)?.value.value();
        let listed = account["secrets"].as_array().into_iter().flatten();
        let made_for_it = listed.into_iter().any(|secret| secret["name"] == *self.secret);
        let key = match made_for_it {
            true => "authentication.k8s.io/legacy-token-autogenerated-secret",
            false => "authentication.k8s.io/legacy-token-manual-secret",
        };
        Some((key, self.secret.clone()))
    }
}

/// `2026-11-24`
fn day(now: i64) -> String {
    Timestamp::from_second(now).unwrap_or_default().strftime("%Y-%m-%d").to_string()
}

/// Uses that are still to be written down: each Secret is marked once a day.
#[derive(Default)]
pub struct Tracker {
    /// By namespace and name: the day.
    waiting: Mutex<HashMap<(String, String), String>>,
    some: Notify,
}

impl Tracker {
    fn used(&self, namespace: &str, name: &str, day: String) {
        self.waiting.lock().insert((namespace.to_owned(), name.to_owned()), day);
        self.some.notify_one();
    }

    #[cfg(test)]
    pub fn days(&self) -> Vec<String> {
        self.waiting.lock().iter().map(|((namespace, name), day)| format!("{namespace}/{name} {day}")).collect()
    }
}

/// Marks the Secrets of tokens that are used, for as long as the process runs; says first since when that is done.
pub(super) async fn keep_marked(server: ApiServer, tracker: Arc<Tracker>) {
    let send = crate::startup::send;
    if server.view.get("configmaps", "kube-system", TRACKING).is_none() {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": TRACKING, "namespace": "kube-system"},
            "data": {"since": day(crate::server::now_seconds())}});
        let made = send(&server, "POST", "/api/v1/namespaces/kube-system/configmaps", Some(&map)).await;
        if let Err(error) = made.or_else(|error| if error.code == 409 { Ok(()) } else { Err(error) }) {
            tracing::warn!(%error, "cannot say since when uses of legacy tokens are marked");
        }
    }
    loop {
        tracker.some.notified().await;
        let uses = std::mem::take(&mut *tracker.waiting.lock());
        for ((namespace, name), day) in uses {
            let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
            let patch = json!({"metadata": {"labels": {LAST_USED: day}}});
            if let Err(error) = send(&server, "PATCH", &path, Some(&patch)).await {
                tracing::warn!(%error, namespace, name, "cannot mark the use of a legacy token");
            }
        }
    }
}
