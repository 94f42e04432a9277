//! From verified claims to a user: everything that a token is bound to must still exist, with the same UID.

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
    let alive = |kind, prefix, namespace: &str, bound: &Bound| check_alive(view, kind, prefix, namespace, bound, now);
    alive("service account", ACCOUNTS, namespace, account)?;
    if let Some(secret) = &bound.secret {
        alive("secret", SECRETS, namespace, secret)?;
    }
    if let Some(pod) = &bound.pod {
        alive("pod", PODS, namespace, pod)?;
    } else if let Some(node) = &bound.node {
        // With a pod, the node is information only: the pod's life bounds the token's.
        alive("node", NODES, "", node)?;
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

fn check_alive(
    view: &View,
    kind: &'static str,
    prefix: &str,
    namespace: &str,
    bound: &Bound,
    now: i64,
) -> Result<(), TokenError> {
    let refuse = |problem| Err(TokenError::Bound { kind, name: bound.name.clone(), problem });
    let Some(entry) = view.get(prefix, namespace, &bound.name) else { return refuse("does not exist") };
    let meta = entry.value.meta();
    if *meta.uid != *bound.uid {
        return refuse("was deleted and created anew");
    }
    // A deletion timestamp includes the grace period: the object may serve until then.
    let deleted = meta.deletion_timestamp.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
    if deleted.is_some_and(|at| at.as_second() < now - LEEWAY_SECONDS) {
        return refuse("has been deleted");
    }
    Ok(())
}
