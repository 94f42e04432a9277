//! Acting as somebody else (`kubectl --as`): headers name the user, groups, UID and extra; each needs the verb `impersonate`.

use apimachinery::status::{Result, StatusError};
use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;

use super::service_account::{groups, split_user_name};
use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use crate::authz::{self, Authorizer};
use crate::request::{RequestInfo, UserInfo};

const EXTRA_PREFIX: &str = "impersonate-extra-";

/// The user that `user` wants to be by the request's headers, if it may; `user` itself without such headers.
pub fn impersonate(authorizer: &Authorizer, user: &UserInfo, headers: &HeaderMap) -> Result<UserInfo> {
    let wanted = wanted(headers)?;
    let Some(mut wanted) = wanted else { return Ok(user.clone()) };
    for check in checks(&wanted) {
        authz::require(authorizer, user, &check)?;
    }
    if wanted.groups.is_empty()
        && let Some((namespace, _)) = split_user_name(&wanted.name)
    {
        wanted.groups = groups(namespace);
    }
    let implied = if wanted.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !wanted.in_group(AUTHENTICATED) && !wanted.in_group(UNAUTHENTICATED) {
        wanted.groups.push(implied.to_owned());
    }
    Ok(wanted)
}

fn wanted(headers: &HeaderMap) -> Result<Option<UserInfo>> {
    let text = |name: &str| headers.get(name).map_or(Ok(""), text).map(str::to_owned);
    let mut wanted = UserInfo { name: text("impersonate-user")?, uid: text("impersonate-uid")?, ..UserInfo::default() };
    for group in headers.get_all("impersonate-group") {
        wanted.groups.push(self::text(group)?.to_owned());
    }
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA_PREFIX) {
            let key = percent_decode_str(key).decode_utf8_lossy().to_lowercase();
            wanted.extra.entry(key).or_default().push(self::text(value)?.to_owned());
        }
    }
    if !wanted.name.is_empty() {
        return Ok(Some(wanted));
    }
    if wanted == UserInfo::default() {
        return Ok(None);
    }
    Err(StatusError::internal("requested groups, a uid or extra without impersonating a user"))
}

/// A value that cannot be read must not count as absent: the caller would go on as itself, with more power than it asked for.
fn text(value: &HeaderValue) -> Result<&str> {
    std::str::from_utf8(value.as_bytes()).map_err(|_| StatusError::bad_request("impersonation headers must be UTF-8"))
}

/// The permissions that are needed to be `wanted`.
fn checks(wanted: &UserInfo) -> Vec<RequestInfo> {
    const AUTHENTICATION: &str = "authentication.k8s.io";
    let check = |group: &str, resource: &str, name: &str| RequestInfo {
        is_resource: true,
        verb: "impersonate".to_owned(),
        group: group.to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        ..RequestInfo::default()
    };
    let mut out = Vec::new();
    out.push(match split_user_name(&wanted.name) {
        Some((namespace, name)) => {
            RequestInfo { namespace: namespace.to_owned(), ..check("", "serviceaccounts", name) }
        }
        None => check("", "users", &wanted.name),
    });
    out.extend(wanted.groups.iter().map(|group| check("", "groups", group)));
    if !wanted.uid.is_empty() {
        out.push(check(AUTHENTICATION, "uids", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        let extra = values
            .iter()
            .map(|value| RequestInfo { subresource: key.clone(), ..check(AUTHENTICATION, "userextras", value) });
        out.extend(extra);
    }
    out
}
