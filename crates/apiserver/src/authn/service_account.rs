//! From verified claims to a user: everything that a token is bound to must still exist, with the same UID (upstream's
//! `pkg/serviceaccount/claims.go`).

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::jwt::{Bound, Claims, LEEWAY_SECONDS, TokenError};
use crate::request::UserInfo;
use crate::view::View;

pub const USER_PREFIX: &str = "system:serviceaccount:";
pub const GROUP: &str = "system:serviceaccounts";

/// Storage prefixes of what tokens are bound to.
pub const ACCOUNTS: &str = "serviceaccounts";
pub const PODS: &str = "pods";
pub const SECRETS: &str = "secrets";
pub const NODES: &str = "minions";

pub fn user_name(namespace: &str, name: &str) -> String {
    format!("{USER_PREFIX}{namespace}:{name}")
}

/// Namespace and name of the service account that a user name means.
pub fn split_user_name(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(USER_PREFIX)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// The groups of every service account of a namespace.
pub fn groups(namespace: &str) -> Vec<String> {
    vec![GROUP.to_owned(), format!("{GROUP}:{namespace}")]
}

/// The user of a token whose signature and times were checked.
pub fn user_of(claims: &Claims, view: &View, now: i64) -> Result<UserInfo, TokenError> {
    let bound = &claims.kubernetes;
    let namespace = bound.namespace.as_str();
    let account = &bound.serviceaccount;
    if claims.sub != user_name(namespace, &account.name) {
        return Err(TokenError::Malformed);
    }
    check_account(view, namespace, account, now)?;
    if let Some(secret) = &bound.secret {
        check_bound(view, "secret", (SECRETS, namespace), secret, now)?;
    }
    if let Some(pod) = &bound.pod {
        check_bound(view, "pod", (PODS, namespace), pod, now)?;
    } else if let Some(node) = &bound.node {
        // With a pod, the node is information only: the pod's life bounds the token's.
        check_bound(view, "node", (NODES, ""), node, now)?;
    }
    let mut extra = BTreeMap::new();
    let mut tell = |key: &str, value: &str| {
        if !value.is_empty() {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    if !claims.jti.is_empty() {
        tell("credential-id", &format!("JTI={}", claims.jti));
    }
    for (kind, bound) in [("pod", &bound.pod), ("node", &bound.node)] {
        if let Some(bound) = bound {
            tell(&format!("{kind}-name"), &bound.name);
            tell(&format!("{kind}-uid"), &bound.uid);
        }
    }
    Ok(UserInfo { name: claims.sub.clone(), uid: account.uid.clone(), groups: groups(namespace), extra })
}

fn check_account(view: &View, namespace: &str, bound: &Bound, now: i64) -> Result<(), TokenError> {
    let name = &bound.name;
    let refuse = |why: String| Err(TokenError::Refused(why));
    let Some(entry) = view.get(ACCOUNTS, namespace, name) else {
        return refuse(format!("serviceaccounts {name:?} not found"));
    };
    let meta = entry.value.meta();
    if is_over(meta.deletion_timestamp.as_deref(), now) {
        return refuse(format!("service account {namespace}/{name} has been deleted"));
    }
    if *meta.uid != *bound.uid {
        return refuse(format!("service account UID ({}) does not match claim ({})", meta.uid, bound.uid));
    }
    Ok(())
}

fn check_bound(
    view: &View,
    kind: &str,
    (prefix, namespace): (&str, &str),
    bound: &Bound,
    now: i64,
) -> Result<(), TokenError> {
    let gone = || TokenError::Refused("service account token has been invalidated".to_owned());
    let entry = view.get(prefix, namespace, &bound.name).ok_or_else(gone)?;
    let meta = entry.value.meta();
    if is_over(meta.deletion_timestamp.as_deref(), now) {
        return Err(gone());
    }
    if *meta.uid != *bound.uid {
        let why = format!("{kind} UID ({}) does not match service account {kind} ref claim ({})", meta.uid, bound.uid);
        return Err(TokenError::Refused(why));
    }
    Ok(())
}

/// A deletion timestamp includes the grace period: the object may serve until then.
fn is_over(deletion: Option<&str>, now: i64) -> bool {
    let deleted = deletion.and_then(|text| text.parse::<Timestamp>().ok());
    deleted.is_some_and(|at| at.as_second() < now - LEEWAY_SECONDS)
}
