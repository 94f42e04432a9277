//! Bootstrap tokens (`abcdef.0123456789abcdef`): Secrets of type `bootstrap.kubernetes.io/token` in `kube-system`, with which
//! machines join that have no certificate yet (upstream's `plugin/pkg/auth/authenticator/token/bootstrap`).

use apimachinery::{Value, meta};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::service_account::SECRETS;
use crate::request::UserInfo;
use crate::view::View;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const USER_PREFIX: &str = "system:bootstrap:";
const DEFAULT_GROUP: &str = "system:bootstrappers";
const GROUP_PREFIX: &str = "system:bootstrappers:";

/// Id and secret, if a bearer token has the form of a bootstrap token.
fn parse(token: &str) -> Option<(&str, &str)> {
    let plain = |part: &str, length| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    token.split_once('.').filter(|(id, secret)| plain(id, 6) && plain(secret, 16))
}

/// The user of a token, or none: what is wrong with a token is not told, only logged.
pub fn user_of(view: &View, token: &str, now: i64) -> Option<UserInfo> {
    let (id, secret) = parse(token)?;
    let name = format!("bootstrap-token-{id}");
    let entry = view.get(SECRETS, NAMESPACE, &name)?;
    match check(&entry.value.value(), id, secret, now) {
        Ok(user) => Some(user),
        Err(why) => {
            tracing::debug!("Bootstrap secret {NAMESPACE}/{name} matching bearer token {why}");
            None
        }
    }
}

fn check(object: &Value, id: &str, secret: &str, now: i64) -> Result<UserInfo, String> {
    let data = |key: &str| {
        let bytes = STANDARD.decode(meta::str_at(object, &["data", key])).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    if meta::is_deleting(object) {
        return Err("is deleted and awaiting removal".to_owned());
    }
    if meta::str_at(object, &["type"]) != TYPE {
        return Err(format!("has invalid type, expected {TYPE}."));
    }
    if super::fingerprint(data("token-secret")) != super::fingerprint(secret) {
        return Err("has invalid value for key token-secret.".to_owned());
    }
    if data("token-id") != id {
        return Err(format!("has invalid value for key token-id, expected {id}."));
    }
    let expiration = data("expiration");
    if !expiration.is_empty() {
        // An expiration that cannot be read is in the past, as upstream.
        let until = expiration.parse::<Timestamp>().map(Timestamp::as_second);
        if until.map_or(true, |until| now >= until) {
            return Err(format!("is expired or cannot be read: {expiration:?}"));
        }
    }
    if data("usage-bootstrap-authentication") != "true" {
        return Err("not marked usage-bootstrap-authentication=true.".to_owned());
    }
    let groups = groups(&data("auth-extra-groups"))?;
    Ok(UserInfo { name: format!("{USER_PREFIX}{id}"), groups, ..UserInfo::default() })
}

/// The group of all bootstrappers and the further ones that a token names, in order.
fn groups(extra: &str) -> Result<Vec<String>, String> {
    let mut groups = vec![DEFAULT_GROUP.to_owned()];
    for group in extra.split(',').filter(|_| !extra.is_empty()) {
        // `\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`
        let rest = group.strip_prefix(GROUP_PREFIX).unwrap_or_default();
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b':' || byte == b'-';
        let ends = rest.bytes().last().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !ends || rest.len() > 256 || !rest.bytes().all(allowed) {
            return Err(format!("has invalid value for key auth-extra-groups: bootstrap group {group:?} is invalid."));
        }
        groups.push(group.to_owned());
    }
    groups.sort();
    groups.dedup();
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::Cluster;
    use serde_json::json;

    const NOW: i64 = 1_800_000_000;

    fn secret(change: impl FnOnce(&mut Value)) -> Value {
        let mut data = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true", "auth-extra-groups": "system:bootstrappers:workers"});
        change(&mut data);
        for value in data.as_object_mut().unwrap().values_mut() {
            *value = json!(STANDARD.encode(value.as_str().unwrap()));
        }
        json!({"metadata": {"name": "bootstrap-token-abcdef", "namespace": NAMESPACE}, "type": TYPE, "data": data})
    }

    #[test]
    fn a_token_is_good_while_its_secret_says_so() {
        let cluster = Cluster::new();
        let ask = |object: Value, token: &str| {
            cluster.put(SECRETS, object);
            user_of(&cluster.view, token, NOW)
        };
        let token = "abcdef.0123456789abcdef";
        let user = ask(secret(|_| {}), token).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(user.groups, [DEFAULT_GROUP, "system:bootstrappers:workers"]);
        assert!(ask(secret(|data| data["expiration"] = json!("2027-01-15T08:00:01Z")), token).is_some());
        for (key, value) in [
            ("expiration", "2027-01-15T08:00:00Z"),
            ("expiration", "tomorrow"),
            ("token-secret", "0123456789abcdee"),
            ("token-id", "abcdee"),
            ("usage-bootstrap-authentication", "yes"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:"),
        ] {
            assert_eq!(ask(secret(|data| data[key] = json!(value)), token), None, "{key}={value}");
        }
        let mut other = secret(|_| {});
        other["type"] = json!("Opaque");
        assert_eq!(ask(other, token), None);
        for wrong in ["abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "abcdef", "bcdefg.0123456789abcdef"] {
            assert_eq!(ask(secret(|_| {}), wrong), None, "{wrong}");
        }
    }
}
