//! Service account tokens for pods: asked for by the TokenRequest API, bound to the pod, renewed at four fifths of their life.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::{Api, PostParams};

use crate::error::{Error, Result};
use crate::podutil;

const DEFAULT_SECONDS: i64 = 3600;
/// No token is used for longer, however long it lives.
const LONGEST_USE: Duration = Duration::from_secs(24 * 3600);

struct Held {
    token: String,
    renew_at: Timestamp,
}

/// The tokens of one pod, by audience and life time.
#[derive(Default)]
pub struct Tokens {
    held: HashMap<(String, i64), Held>,
}

impl Tokens {
    /// When the next token is to be renewed.
    pub fn due(&self) -> Option<Timestamp> {
        self.held.values().map(|held| held.renew_at).min()
    }

    pub async fn get(
        &mut self,
        api: &kube::Client,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
    ) -> Result<String> {
        let audience = source.audience.clone().unwrap_or_default();
        let seconds = source.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let key = (audience.clone(), seconds);
        let now = Timestamp::now();
        if let Some(held) = self.held.get(&key).filter(|held| now < held.renew_at) {
            return Ok(held.token.clone());
        }
        match request(api, pod, audience, seconds).await {
            Ok((token, expires)) => {
                let held = Held { token: token.clone(), renew_at: renewal(now, expires) };
                self.held.insert(key, held);
                Ok(token)
            }
            // An old token may still be good; better that than a pod without one.
            Err(error) => match self.held.get_mut(&key) {
                Some(held) => {
                    held.renew_at = now.checked_add(Duration::from_secs(10)).unwrap_or(now);
                    tracing::warn!(pod = %podutil::full_name(pod), %error, "service account token not renewed, will retry");
                    Ok(held.token.clone())
                }
                None => Err(error),
            },
        }
    }
}

fn renewal(now: Timestamp, expires: Timestamp) -> Timestamp {
    let life: Duration = expires.duration_since(now).try_into().unwrap_or_default();
    let usable = (life * 4 / 5).min(LONGEST_USE);
    now.checked_add(usable.max(Duration::from_secs(1))).unwrap_or(expires)
}

async fn request(api: &kube::Client, pod: &Pod, audience: String, seconds: i64) -> Result<(String, Timestamp)> {
    let spec = podutil::spec(pod);
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let bound = BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
    };
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: (!audience.is_empty()).then(|| vec![audience]),
            expiration_seconds: Some(seconds),
            bound_object_ref: Some(bound),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(api.clone(), podutil::namespace(pod));
    let answer: TokenRequest = accounts.create_subresource("token", account, &PostParams::default(), &request).await?;
    let status = answer.status.ok_or_else(|| Error::Invalid("the token request has no status".to_owned()))?;
    let incomplete = || Error::Invalid("the token request's status is incomplete".to_owned());
    let token = status.token.ok_or_else(incomplete)?;
    let expires = status.expiration_timestamp.ok_or_else(incomplete)?;
    Ok((token, expires.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_at_four_fifths_and_within_a_day() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        assert_eq!(renewal(at(0), at(1000)), at(800));
        assert_eq!(renewal(at(0), at(10 * 86_400)), at(86_400));
        assert_eq!(renewal(at(100), at(50)), at(101));
    }
}
