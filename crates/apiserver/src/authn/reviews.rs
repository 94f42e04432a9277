//! The API kinds that are requests about identities: TokenRequest, TokenReview, SelfSubjectReview.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, meta};
use jiff::Timestamp;
use serde_json::json;

use super::jwt::{Bound, Claims, Kubernetes};
use super::service_account::{ACCOUNTS, NODES, PODS, SECRETS, user_name};
use super::{Authenticator, TokenSigner, authenticated};
use crate::request::UserInfo;
use crate::view::View;
use crate::warnings::Warnings;

const GROUP: &str = "authentication.k8s.io";
const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// Kubelets ask for this many seconds for tokens of old-style mounts: pods that never read the file again get a year, and a warning.
const EXTENDED_SECONDS: i64 = 3607;

/// One `POST …/serviceaccounts/<name>/token`.
pub struct TokenAsk<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    /// The TokenRequest.
    pub body: &'a Value,
    /// Seconds since the epoch.
    pub now: i64,
    /// A new UUID: the token's `jti`.
    pub id: &'a str,
    /// Takes what the asker should be told besides the answer.
    pub warnings: &'a Warnings,
}

/// Makes a token for a service account, bound to a pod, secret or node if asked.
pub fn token_request(view: &View, signer: &TokenSigner, ask: &TokenAsk<'_>) -> Result<Value> {
    let TokenAsk { namespace, name, body, now, id, .. } = *ask;
    let account = view.get(ACCOUNTS, namespace, name);
    let account = account.ok_or_else(|| StatusError::not_found(&GroupResource::new("", "serviceaccounts"), name))?;
    let uid = account.value.meta().uid.to_string();
    check_metadata(ask, &uid)?;
    let mut seconds = expiration_seconds(body)?;
    let asked: Vec<String> =
        meta::strings(meta::at(body, &["spec", "audiences"])).into_iter().map(str::to_owned).collect();
    let audiences = if asked.is_empty() { signer.audiences().to_vec() } else { asked };
    let bound = BoundObjects::find(view, ask)?;
    if let Some(max) = signer.max_seconds().filter(|max| seconds > *max) {
        let text = format!("requested expiration of {seconds} seconds shortened to {max} seconds");
        ask.warnings.extend([text]);
        seconds = max;
    }
    let own_audiences = audiences.iter().all(|a| signer.audiences().contains(a));
    // Only tokens of pods: nobody else mounts them.
    let extends = seconds == EXTENDED_SECONDS && own_audiences && bound.pod.is_some();
    let extended = signer.extended_seconds().filter(|_| extends);
    let claims = Claims {
        aud: audiences.clone(),
        exp: now + extended.unwrap_or(seconds),
        iat: now,
        iss: signer.issuer().to_owned(),
        jti: id.to_owned(),
        kubernetes: Kubernetes {
            namespace: namespace.to_owned(),
            node: bound.node,
            pod: bound.pod,
            secret: bound.secret,
            serviceaccount: Bound { name: name.to_owned(), uid: uid.clone() },
            warnafter: extended.map(|_| now + seconds),
        },
        nbf: now,
        sub: user_name(namespace, name),
    };
    let token = signer.sign(&claims).map_err(StatusError::internal)?;
    ask.warnings.annotate("authentication.kubernetes.io/issued-credential-id", &format!("JTI={id}"));
    let mut answer = body.clone();
    let metadata = meta::metadata_mut(&mut answer);
    metadata.insert("name".to_owned(), json!(name));
    metadata.insert("namespace".to_owned(), json!(namespace));
    metadata.insert("uid".to_owned(), json!(uid));
    metadata.insert("creationTimestamp".to_owned(), json!(rfc3339(now)));
    let spec = meta::map_mut(&mut answer, "spec");
    spec.insert("audiences".to_owned(), json!(audiences));
    spec.insert("expirationSeconds".to_owned(), json!(seconds));
    spec.entry("boundObjectRef").or_insert(Value::Null);
    answer["status"] = json!({"token": token, "expirationTimestamp": rfc3339(now + seconds)});
    Ok(answer)
}

/// What the request's metadata says must be so of the account.
fn check_metadata(ask: &TokenAsk<'_>, uid: &str) -> Result<()> {
    for (field, expected) in [("name", ask.name), ("namespace", ask.namespace)] {
        let given = meta::str_at(ask.body, &["metadata", field]);
        if !given.is_empty() && given != expected {
            let path = Path::new("metadata").child(field);
            let detail = format!("must match the service account {field} if specified");
            let errors = [Error::invalid(&path, &json!(given), &detail)];
            return Err(StatusError::invalid(&GroupResource::new(GROUP, "TokenRequest"), ask.name, &errors));
        }
    }
    let given = meta::str_at(ask.body, &["metadata", "uid"]);
    if !given.is_empty() && given != uid {
        let why =
            format!("the UID in the token request ({given}) does not match the UID of the service account ({uid})");
        return Err(StatusError::conflict(&GroupResource::new(GROUP, "TokenRequest"), ask.name, &why));
    }
    Ok(())
}

fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

fn expiration_seconds(body: &Value) -> Result<i64> {
    let Some(given) = meta::at(body, &["spec", "expirationSeconds"]).filter(|v| !v.is_null()) else {
        return Ok(DEFAULT_SECONDS);
    };
    let path = Path::new("spec").child("expirationSeconds");
    let seconds = given.as_i64().unwrap_or_default();
    let mut errors = ErrorList::new();
    if seconds < MIN_SECONDS {
        errors.push(Error::invalid(&path, given, "may not specify a duration less than 10 minutes"));
    }
    if seconds > MAX_SECONDS {
        errors.push(Error::invalid(&path, given, "may not specify a duration larger than 2^32 seconds"));
    }
    if errors.is_empty() {
        return Ok(seconds);
    }
    Err(StatusError::invalid(&GroupResource::new(GROUP, "TokenRequest"), "", &errors))
}

#[derive(Default)]
struct BoundObjects {
    pod: Option<Bound>,
    secret: Option<Bound>,
    node: Option<Bound>,
}

impl BoundObjects {
    fn find(view: &View, ask: &TokenAsk<'_>) -> Result<Self> {
        let Some(reference) = meta::at(ask.body, &["spec", "boundObjectRef"]).filter(|v| !v.is_null()) else {
            return Ok(BoundObjects::default());
        };
        let text = |key: &str| meta::str_at(reference, &[key]);
        let (prefix, plural, namespace) = match (text("apiVersion"), text("kind")) {
            ("v1", "Pod") => (PODS, "pods", ask.namespace),
            ("v1", "Secret") => (SECRETS, "secrets", ask.namespace),
            ("v1", "Node") => (NODES, "nodes", ""),
            (version, kind) => {
                let shown =
                    if version.is_empty() { format!("/, Kind={kind}") } else { format!("{version}, Kind={kind}") };
                return Err(StatusError::bad_request(format!("cannot bind token to object of type {shown}")));
            }
        };
        let name = text("name");
        let entry = view.get(prefix, namespace, name);
        let entry = entry.ok_or_else(|| StatusError::not_found(&GroupResource::new("", plural), name))?;
        let uid = entry.value.meta().uid.to_string();
        let wanted = text("uid");
        if !wanted.is_empty() && wanted != uid {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(StatusError::conflict(&GroupResource::new("", text("kind")), name, &why));
        }
        let bound = Some(Bound { name: name.to_owned(), uid });
        Ok(match plural {
            "pods" => {
                let pod = entry.value.value();
                if meta::str_at(&pod, &["spec", "serviceAccountName"]) != ask.name {
                    let account = ask.name;
                    return Err(StatusError::bad_request(format!(
                        "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                    )));
                }
                BoundObjects { pod: bound, node: node_of(view, &pod), secret: None }
            }
            "secrets" => BoundObjects { secret: bound, ..BoundObjects::default() },
            _ => BoundObjects { node: bound, ..BoundObjects::default() },
        })
    }
}

/// The node that a pod runs on; without UID if the node is gone.
fn node_of(view: &View, pod: &Value) -> Option<Bound> {
    let name = meta::str_at(pod, &["spec", "nodeName"]);
    let uid = view.get(NODES, "", name).map(|node| node.value.meta().uid.to_string()).unwrap_or_default();
    (!name.is_empty()).then(|| Bound { name: name.to_owned(), uid })
}

/// Whose token is this? Answered for anybody who may ask.
pub fn token_review(authenticator: &Authenticator, body: &Value, now: i64) -> Result<Value> {
    let token = meta::str_at(body, &["spec", "token"]);
    if token.is_empty() {
        return Err(StatusError::bad_request("token is required for TokenReview in authentication"));
    }
    let asked: Vec<String> =
        meta::strings(meta::at(body, &["spec", "audiences"])).into_iter().map(str::to_owned).collect();
    let audiences = (!asked.is_empty()).then_some(asked.as_slice());
    let mut answer = body.clone();
    answer["status"] = match authenticator.check_token(token, audiences, now) {
        Ok(checked) => {
            let user = user_value(&authenticated(checked.user));
            json!({"authenticated": true, "user": user, "audiences": checked.audiences})
        }
        Err(error) => json!({"user": {}, "error": error}),
    };
    Ok(answer)
}

/// Who am I? (`kubectl auth whoami`) The SelfSubjectReview for `user`.
pub fn self_subject_review(user: &UserInfo, now: i64) -> Value {
    json!({
        "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"creationTimestamp": rfc3339(now)}, "status": {"userInfo": user_value(user)},
    })
}

fn user_value(user: &UserInfo) -> Value {
    let mut value = json!({"username": user.name});
    if !user.uid.is_empty() {
        value["uid"] = json!(user.uid);
    }
    if !user.groups.is_empty() {
        value["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}
